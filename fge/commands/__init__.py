"""One file a command: wiring and nothing else."""
