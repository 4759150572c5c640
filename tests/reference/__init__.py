"""The plain scheduler: what docs/scheduling.md says, one pod and one node at a time, no arrays.

The fast one must decide the same; property tests hold the two together.
"""
