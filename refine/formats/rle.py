"""COCO's segmentations as run lengths."""

from __future__ import annotations

import math
from typing import Any

from hotcoco import mask


def compressed(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Polygons, or run lengths of any kind -> compressed run lengths, which `hotcoco.mask` takes.

    Args:
        segmentation: as COCO's JSONs have it: polygons [x1, y1, x2, y2, …] in pixels, or `size` and `counts`.
        size: (height, width) of the image.

    Raises:
        ValueError, TypeError, KeyError: it is not of that form, or of another size.
    """
    if isinstance(segmentation, list) and not all(math.isfinite(sum(polygon)) for polygon in segmentation):
        raise ValueError("a corner is not finite")
    code = mask.fr_py_objects(segmentation, *size)
    if isinstance(code, list):
        code = mask.merge(code)
    if tuple(code["size"]) != tuple(size):
        raise ValueError(f"its size is {list(code['size'])}, the image's {list(size)}")
    counts = segmentation.get("counts") if isinstance(segmentation, dict) else None
    if isinstance(counts, list) and sum(counts) != size[0] * size[1]:
        raise ValueError(f"its counts are of {sum(counts)} pixels, the image has {size[0] * size[1]}")
    return code
