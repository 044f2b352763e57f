"""Every fault of a data set, found before training."""
