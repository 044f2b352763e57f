"""From instances and a semantic map to one panoptic map."""

from refine.fusion.config import FusionConfig, Method, Resolve
from refine.fusion.fuse import fuse
from refine.fusion.rules import OcclusionFn
from refine.fusion.unknown import erase_unknown

__all__ = ["FusionConfig", "Method", "OcclusionFn", "Resolve", "erase_unknown", "fuse"]
