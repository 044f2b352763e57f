"""Validation of a whole data set before training."""
