"""Fusion of instances and a semantic map into one panoptic map."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from refine.fusion.config import FusionConfig, Method, Resolve

if TYPE_CHECKING:
    from refine.fusion.api import fuse
    from refine.fusion.rules import OcclusionFn
    from refine.fusion.unknown import erase_unknown

_HOMES = {"OcclusionFn": "rules", "erase_unknown": "unknown", "fuse": "api"}
__all__ = ["FusionConfig", "Method", "OcclusionFn", "Resolve", "erase_unknown", "fuse"]


def __getattr__(name: str) -> Any:
    """Import names that need torch on first use, so that reading thresholds does not load it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'refine.fusion' has no attribute {name!r}")
    return getattr(importlib.import_module(f"refine.fusion.{_HOMES[name]}"), name)
