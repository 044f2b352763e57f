"""Masks of geometric shapes, as compressed run lengths; polygons are rasterised as pycocotools does."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from hotcoco import mask

from refine.data.convert.source import Region
from refine.errors import RefineError
from refine.formats import rle
from refine.formats.label_image import decode

Code = dict[str, Any]
Size = tuple[int, int]


def polygon(points: Any, size: Size, where: str) -> Code:
    """Return the mask of a polygon.

    Args:
        points: [[x, y], …] in pixels, at least three; the centre of the first pixel is (0.5, 0.5).
        size: (height, width) of the image in pixels.
        where: file and field, for messages.

    Raises:
        RefineError: the points are not three or more pairs of finite numbers.
    """
    try:
        flat = np.asarray(points, np.float64)
        if flat.ndim != 2 or flat.shape[1] != 2:
            raise ValueError(f"expected pairs of numbers, got an array of shape {list(flat.shape)}")
        return rle.compressed([flat.reshape(-1).tolist()], size)
    except (ValueError, TypeError, OverflowError) as error:
        raise RefineError(f"{where}: the polygon is invalid ({error}); correct or drop it") from error


def rectangle(
    box: Sequence[float],
    size: Size,
    where: str,
    angle: float = 0.0,
    pivot: tuple[float, float] | None = None,
) -> Code:
    """Return the mask of a rectangle.

    Args:
        box: x1, y1, x2, y2 in pixels.
        size: (height, width) of the image in pixels.
        where: file and field, for messages.
        angle: rotation in degrees, clockwise as seen.
        pivot: point x, y of the rotation; None is the centre.
    """
    x1, y1, x2, y2 = box
    corners = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], float)
    return polygon(_rotate(corners, corners.mean(0) if pivot is None else np.array(pivot), angle), size, where)


def ellipse(center: Sequence[float], radii: Sequence[float], size: Size, where: str, angle: float = 0.0) -> Code:
    """Return the mask of the pixels whose centres lie inside an ellipse; arguments as in `rectangle`.

    Raises:
        RefineError: a number is not finite, or a radius is not positive.
    """
    numbers = np.array([*center, *radii, angle], float)
    if not np.isfinite(numbers).all() or numbers[2:4].min() <= 0:
        raise RefineError(
            f"{where}: the ellipse has center {list(center)} and radii {list(radii)}; correct or drop it"
        )
    y, x = np.ogrid[: size[0], : size[1]]
    turn = np.deg2rad(angle)
    dx, dy = x + 0.5 - center[0], y + 0.5 - center[1]
    along, across = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
    return encode((along / radii[0]) ** 2 + (across / radii[1]) ** 2 <= 1)


def bitmap(values: np.ndarray, left: int, top: int, size: Size, where: str) -> Code:
    """Return the mask of a small mask, [h, w], whose first pixel is (left, top) of the image.

    Raises:
        RefineError: it does not lie inside the image.
    """
    height, width = values.shape
    if left < 0 or top < 0 or top + height > size[0] or left + width > size[1]:
        raise RefineError(
            f"{where}: a mask of {width} × {height} pixels at ({left}, {top}) leaves the image of {size[1]} × "
            f"{size[0]}; correct it"
        )
    whole = np.zeros(size, np.uint8, "F")
    whole[top : top + height, left : left + width] = values != 0
    return mask.encode(whole)


def encode(values: np.ndarray) -> Code:
    """Return the code of a mask, [H, W] of any type."""
    return mask.encode(np.asfortranarray(values != 0, np.uint8))


def join_parts(parts: Iterable[tuple[Hashable | None, Region]]) -> list[Region]:
    """Join regions of the same class and group, the parts of one object, to one region.

    Args:
        parts: group and region of each part; regions without a group, None, stay alone.
    """
    groups: dict[object, list[Region]] = {}
    for n, (group, region) in enumerate(parts):
        groups.setdefault(n if group is None else (region.label, group), []).append(region)
    return [
        replace(found[0], code=mask.merge([each.code for each in found]), depth=max(each.depth for each in found))
        for found in groups.values()
    ]


def embedded_png(data: bytes, where: str) -> np.ndarray:
    """Decode the mask of a PNG in memory, [H, W] bool: pixels that are not black, or opaque if it has opacity.

    Raises:
        RefineError: it is not a PNG, damaged or too large.
    """
    values = decode(data, where, "RGBA")
    opaque = values[..., 3] > 0
    return np.asarray((values[..., :3] > 0).any(2) if opaque.all() else opaque)


def from_base64(text: Any, where: str) -> bytes:
    """Decode base64.

    Raises:
        RefineError: the value is not base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise RefineError(f"{where}: is not base64 ({error}); correct or drop it") from error


def _rotate(points: np.ndarray, center: np.ndarray, angle: float) -> np.ndarray:
    if not angle:
        return points
    turn = np.deg2rad(angle)
    matrix = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return (points - center) @ matrix + center
