"""Panoptic segmentation by prediction fusion (REFINE, AAAI 2021)."""

__version__ = "0.1.0"
