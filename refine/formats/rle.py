"""Conversion of COCO segmentations to compressed run lengths."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hotcoco import mask

from refine.errors import shown


def compressed(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Convert polygons or run lengths of any kind to compressed run lengths for `hotcoco.mask`.

    Args:
        segmentation: COCO segmentation: polygons [x1, y1, x2, y2, …] in pixels, or `size` and `counts`.
        size: (height, width) of the image in pixels.

    Raises:
        ValueError, TypeError, KeyError, OverflowError: it has another form or size, or is truncated.
    """
    if not segmentation:
        raise ValueError("it is empty")
    if isinstance(segmentation, dict):
        if list(segmentation["size"]) != list(size):
            raise ValueError(f"expected size {list(size)}, got {shown(list(segmentation['size']))}")
        counts = segmentation["counts"]
        total = sum(counts) if isinstance(counts, list) else int(_decoded(counts).sum())
        if total != size[0] * size[1]:
            raise ValueError(f"expected counts of {size[0] * size[1]} pixels, got {shown(total)}")
        if isinstance(counts, list) and not all(type(count) is int for count in counts):
            raise TypeError("expected integer counts")
    else:
        for polygon in segmentation:
            if len(polygon) < 6 or len(polygon) % 2 or bool in map(type, polygon):
                raise ValueError("a polygon needs three corners, x and y of each")
            if not math.isfinite(sum(polygon)):
                raise ValueError("a corner is not finite")
    code = mask.fr_py_objects(segmentation, *size)
    return mask.merge(code) if isinstance(code, list) else code


def pixels(code: dict[str, Any]) -> np.ndarray:
    """Return the pixels of a mask as indices x · height + y, increasing: [A] int64.

    Args:
        code: compressed run lengths, as `compressed` returns them.
    """
    counts = _decoded(code["counts"])
    ends = np.cumsum(counts)
    starts, lengths = ends[:-1:2], counts[1::2]
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum())


def _decoded(counts: str | bytes) -> np.ndarray:
    """Return the run lengths that compressed counts encode, [R] int64, of 0 and 1 by turns.

    Their sum is too small if the string is truncated. A count is a little-endian number of 5 bits per character
    (48 is 0); bit 6 marks continuation and bit 5 of the last character is the sign. From the fourth count on, the
    difference to the count before the previous one is stored (`rleToString` in COCO's maskApi.c).

    Raises:
        ValueError: the string has another form, is truncated within a count, or contains a negative count.
    """
    encoded = counts.encode("ascii") if isinstance(counts, str) else counts
    data = np.frombuffer(encoded, np.uint8).astype(np.int64) - 48
    if not data.size or data.min() < 0 or data.max() > 63 or data[-1] & 32:
        raise ValueError("its counts are not a string of compressed run lengths, or truncated")
    ends = np.flatnonzero(data & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    digit = np.arange(data.size) - np.repeat(starts, ends - starts + 1)
    if digit.max() > 6:
        raise ValueError("one of its counts has more than 32 bits")
    values = np.add.reduceat((data & 31) << 5 * digit, starts)
    values -= np.where(data[ends] & 16, 1 << 5 * (ends - starts + 1), 0)
    for chain in (values[1::2], values[2::2]):
        np.cumsum(chain, out=chain)
    if values.min() < 0:
        raise ValueError("one of its counts is negative")
    return values
