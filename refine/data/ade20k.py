"""The 150 classes of ADE20K's scene parsing benchmark."""

from pathlib import Path

ADE20K = Path(__file__).with_name("ade20k_categories.json")
"""List of panoptic categories with ids from 0; `alias` is the name that semantic models use."""
