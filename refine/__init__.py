"""Panoptic segmentation by prediction fusion (REFINE, AAAI 2021).

import refine
result = refine.Predictor("nuclei")("cells.png")    # PanopticResult
result.overlay("cells.png").save("overlay.jpg")
result.save("out")                                  # COCO panoptic JSON and PNG
result = refine.fuse(instances, sem_seg, categories=categories, method="soe")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refine.checkpoint.folder import load_model
    from refine.errors import RefineError
    from refine.evaluation.pq import PanopticQuality
    from refine.formats import adapters
    from refine.fusion import FusionConfig, fuse
    from refine.inference.evaluate import evaluate
    from refine.inference.predictor import Predictor
    from refine.structures import Categories, Category, Instances, PanopticResult, Segment, Targets
    from refine.training.train import train

__version__ = "0.1.0"
_HOMES = {
    "Categories": "refine.structures",
    "Category": "refine.structures",
    "FusionConfig": "refine.fusion",
    "Instances": "refine.structures",
    "PanopticQuality": "refine.evaluation.pq",
    "PanopticResult": "refine.structures",
    "Predictor": "refine.inference.predictor",
    "RefineError": "refine.errors",
    "Segment": "refine.structures",
    "Targets": "refine.structures",
    "adapters": "refine.formats.adapters",
    "evaluate": "refine.inference.evaluate",
    "fuse": "refine.fusion",
    "load_model": "refine.checkpoint.folder",
    "train": "refine.training.train",
}
__all__ = [
    "Categories",
    "Category",
    "FusionConfig",
    "Instances",
    "PanopticQuality",
    "PanopticResult",
    "Predictor",
    "RefineError",
    "Segment",
    "Targets",
    "adapters",
    "evaluate",
    "fuse",
    "load_model",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that the command line starts without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'refine' has no attribute {name!r}")
    if name == "adapters":
        return importlib.import_module("refine.formats.adapters")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
