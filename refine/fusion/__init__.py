"""Fusion of instances and a semantic map into one panoptic map.

All rules share masks, thresholds, Unknown Erasing and the filling of stuff. They differ in how they decide which
instance lies in front:

- "heuristic" (Kirillov et al. 2019): instances by decreasing score; the first one takes the pixel.
- "srm" (Liu et al. 2019): the same, but by a learned `ranking` of instances.
- "shr" (Wang et al. 2019): pairwise; an instance that lies inside another's box is in front.
- "ocfusion" (Lazarow et al. 2020): pairwise, O(i, j) > O(j, i), O from masks and features.
- "strong": the same rule, O also from class labels.
- "soe" (REFINE): pairwise, Õ(i, j) > Õ(j, i), equation 7: O weighted by the confidence.

Pairwise rules decide pairs that overlap by `FusionConfig.pair_overlap`; all others are ordered by score (see
`refine.fusion.merge`).
"""

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
