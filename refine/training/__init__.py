"""Training: updates, logs, checkpoints and resumption."""
