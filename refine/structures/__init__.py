"""Plain records that cross the borders between packages; they import nothing else of ours."""

from refine.structures.categories import VOID, Categories, Category
from refine.structures.images import ImageBatch
from refine.structures.instances import Instances
from refine.structures.panoptic import PanopticResult, Segment, id_to_rgb, rgb_to_id
from refine.structures.targets import Targets

__all__ = [
    "VOID",
    "Categories",
    "Category",
    "ImageBatch",
    "Instances",
    "PanopticResult",
    "Segment",
    "Targets",
    "id_to_rgb",
    "rgb_to_id",
]
