"""A development cluster of real processes on one machine."""
