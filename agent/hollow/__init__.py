"""Agents without containers: many nodes in one process, to rehearse a cluster that is not there."""
