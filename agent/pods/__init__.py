"""The life of one pod on its node."""
