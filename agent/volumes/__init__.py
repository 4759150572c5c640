"""The volumes of pods on a node: one file per kind."""
