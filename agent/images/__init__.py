"""Images: archives, layers and the node's content store."""
