"""Panoptic segmentation by prediction fusion (REFINE, AAAI 2021).

import refine
result = refine.Predictor("nuclei")("cells.png")    # PanopticResult
result = refine.fuse(instances, sem_seg, categories=categories, method="soe")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refine.fusion import FusionConfig, fuse
    from refine.inference.predictor import Predictor
    from refine.structures import Categories, Category, Instances, PanopticResult, Segment

__version__ = "0.1.0"
_HOMES = {
    "Predictor": "refine.inference.predictor",
    "FusionConfig": "refine.fusion",
    "fuse": "refine.fusion",
    "Categories": "refine.structures",
    "Category": "refine.structures",
    "Instances": "refine.structures",
    "PanopticResult": "refine.structures",
    "Segment": "refine.structures",
}
__all__ = ["Categories", "Category", "FusionConfig", "Instances", "PanopticResult", "Predictor", "Segment", "fuse"]


def __getattr__(name: str) -> Any:
    """Import public names when they are first used: the command line starts without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'refine' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
