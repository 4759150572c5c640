"""The agent: runs pods on one node and reports their status."""
