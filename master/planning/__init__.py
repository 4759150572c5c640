"""Planning: what would happen, found by the controllers and the scheduler on a copy of the cluster. Pure."""
