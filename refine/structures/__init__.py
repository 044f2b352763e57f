"""Plain records shared by all packages; they depend on no other part of refine but ops."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from refine.structures.categories import VOID, Categories, Category

if TYPE_CHECKING:
    from refine.structures.images import ImageBatch
    from refine.structures.instances import Instances
    from refine.structures.panoptic import PanopticResult, Segment, id_to_rgb, rgb_to_id
    from refine.structures.prediction import Prediction
    from refine.structures.targets import Targets

_HOMES = {
    "ImageBatch": "images",
    "Instances": "instances",
    "PanopticResult": "panoptic",
    "Segment": "panoptic",
    "id_to_rgb": "panoptic",
    "rgb_to_id": "panoptic",
    "Prediction": "prediction",
    "Targets": "targets",
}
__all__ = [
    "VOID",
    "Categories",
    "Category",
    "ImageBatch",
    "Instances",
    "PanopticResult",
    "Prediction",
    "Segment",
    "Targets",
    "id_to_rgb",
    "rgb_to_id",
]


def __getattr__(name: str) -> Any:
    """Import records that hold tensors on first use, so that file evaluation does not load torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'refine.structures' has no attribute {name!r}")
    return getattr(importlib.import_module(f"refine.structures.{_HOMES[name]}"), name)
