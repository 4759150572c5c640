"""The store: etcd behind a port, and the one writer, cache and indexes on top."""
