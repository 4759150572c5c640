"""Benchmarks: one file each; each prints its figures last as name=value."""
