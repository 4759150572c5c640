"""The scheduler: a pure function from a snapshot and a queue to a plan."""
