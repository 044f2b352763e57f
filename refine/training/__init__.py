"""Training runs: updates, logs, checkpoints, resuming."""
