"""The master: desired state, decisions and the API."""
