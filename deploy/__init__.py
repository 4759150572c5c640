"""Everything people deploy with: the command, the development cluster, certificates."""
