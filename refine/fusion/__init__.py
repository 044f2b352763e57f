"""From instances and a semantic map to one panoptic map."""

from refine.fusion.config import FusionConfig, Method
from refine.fusion.fuse import fuse

__all__ = ["FusionConfig", "Method", "fuse"]
