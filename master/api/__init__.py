"""The Cluster service: admission, authorisation, reads, watches, streams to nodes."""
