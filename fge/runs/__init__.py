"""The run folder, and training in stages from checkpoint to checkpoint."""
