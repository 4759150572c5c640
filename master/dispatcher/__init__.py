"""Sessions with the agents: assignments down, status up."""
