"""COCO's segmentations as run lengths."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hotcoco import mask


def compressed(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Convert polygons, or run lengths of any kind, to compressed run lengths, which `hotcoco.mask` takes.

    Args:
        segmentation: as COCO's JSONs have it: polygons [x1, y1, x2, y2, …] in pixels, or `size` and `counts`.
        size: (height, width) of the image.

    Raises:
        ValueError, TypeError, KeyError, OverflowError: it is not of that form, of another size, or cut off.
    """
    if isinstance(segmentation, dict):
        if list(segmentation["size"]) != list(size):
            raise ValueError(f"its size is {list(segmentation['size'])}, the image's {list(size)}")
        counts = segmentation["counts"]
        pixels = sum(counts) if isinstance(counts, list) else _decoded_sum(counts)
        if pixels != size[0] * size[1]:
            raise ValueError(f"its counts are of {pixels} pixels, the image has {size[0] * size[1]}")
    elif not all(math.isfinite(sum(polygon)) for polygon in segmentation):
        raise ValueError("a corner is not finite")
    code = mask.fr_py_objects(segmentation, *size)
    return mask.merge(code) if isinstance(code, list) else code


def _decoded_sum(counts: str | bytes) -> int:
    """Return the pixels that compressed counts cover: a string that was cut off covers too few.

    A count is a little-endian number of 5 bits per character (48 is 0), where bit 6 says that it goes on and
    the last character's bit 5 is the sign; from the fourth count on, it is the difference to the one before
    the last (`rleToString` in COCO's maskApi.c).

    Raises:
        ValueError: not such a string, cut off within a count, or a negative count.
    """
    encoded = counts.encode("ascii") if isinstance(counts, str) else counts
    data = np.frombuffer(encoded, np.uint8).astype(np.int64) - 48
    if not data.size or data.min() < 0 or data.max() > 63 or data[-1] & 32:
        raise ValueError("its counts are not a string of compressed run lengths, or cut off")
    ends = np.flatnonzero(data & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(data.size) - np.repeat(starts, ends - starts + 1)
    if place.max() > 6:
        raise ValueError("one of its counts has more than 32 bits")
    values = np.add.reduceat((data & 31) << 5 * place, starts)
    values -= np.where(data[ends] & 16, 1 << 5 * (ends - starts + 1), 0)
    for chain in (values[1::2], values[2::2]):
        np.cumsum(chain, out=chain)
    if values.min() < 0:
        raise ValueError("one of its counts is negative")
    return int(values.sum())
