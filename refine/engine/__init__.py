"""Training, checkpoints, prediction: where the packages meet."""
