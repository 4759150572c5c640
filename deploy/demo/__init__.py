"""The demo: a development cluster with a small application on it."""
