"""Panoptic quality and average precision, from tensors and from files."""
