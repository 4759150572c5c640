"""Shoal: a multi-node cluster scheduler."""

__version__ = "0.1.0"
