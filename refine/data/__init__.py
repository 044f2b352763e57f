"""Data sets: reading, checking, augmentation and batching."""
