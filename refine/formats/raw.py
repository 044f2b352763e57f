"""Pixels of any number of bits and channels, and what becomes of them at 8 bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image

from refine.errors import RefineError

Range = tuple[float, float]
"""The values that become 0 and 255."""
PERCENTILES = (0.1, 99.9)
"""Values between these span the grey levels of an image whose file does not state its range."""
SAMPLE = 1 << 20
"""Pixels, about, from which the percentiles are estimated."""


@dataclass(frozen=True)
class ImageOptions:
    """What to read of a file that holds more than one 8-bit image.

    Attributes:
        page: number, from 1, of a page of a stack or a frame of an animation; None refuses files of several.
        channel: number, from 1, of the channel to read as grey; None reads grey and RGB and refuses other files.
        range: values of images of more than 8 bits that become 0 and 255: a pair, "full" for all that the
            file's data type can hold, or None to choose as `to_bytes` does.
    """

    page: int | None = None
    channel: int | None = None
    range: Range | Literal["full"] | None = None


@dataclass(frozen=True)
class RawImage:
    """Decoded pixels of any number of bits and channels.

    Attributes:
        values: [H, W] or [H, W, C] integers or floats.
        stated: range of the values that the file states, or None.
        is_rgb: the first three channels are red, green and blue.
        has_alpha: the last channel is opacity.
        inverted: the lowest value is white.
        orientation: EXIF orientation, 1-8.
    """

    values: np.ndarray
    stated: Range | None = None
    is_rgb: bool = False
    has_alpha: bool = False
    inverted: bool = False
    orientation: int = 1

    def to_pil(
        self,
        path: str | Path,
        channel: int | None = None,
        chosen: Range | Literal["full"] | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> Image.Image:
        """Convert to 8 bits, grey or RGB, with or without alpha; the orientation goes into the image's EXIF.

        Args:
            path: for messages.
            channel: to take as grey, from 1, or None for all.
            chosen, tell: as in `to_bytes`; one range for all channels.

        Raises:
            RefineError: no such channel, or several that are not RGB and none chosen.
            ValueError: as `to_bytes`.
        """
        values = self.values.reshape(*self.values.shape[:2], -1)
        colors, alpha = (values[..., :-1], values[..., -1:]) if self.has_alpha else (values, None)
        if channel is not None or not (self.is_rgb and colors.shape[2] in (3, 4)):
            colors = colors[..., [check_channel(path, channel, colors.shape[2])]]
            alpha = None if channel is not None else alpha
        colors = to_bytes(colors[..., :3], chosen, self.stated, tell)  # a fourth has no stated meaning
        if self.inverted:
            colors = 255 - colors
        if alpha is not None:
            colors = np.concatenate([colors, to_bytes(alpha, "full")], 2)
        image = Image.fromarray(colors[..., 0] if colors.shape[2] == 1 else colors)
        image.getexif()[ExifTags.Base.Orientation] = self.orientation
        return image


def check_page(path: str | Path, page: int | None, pages: int, what: str) -> int:
    """Return the number, from 0, of the page to read.

    Args:
        path: for messages.
        page: asked for, from 1, or None.
        pages: number of pages.
        what: the pages in words, for messages.

    Raises:
        RefineError: no such page, or none chosen of several.
    """
    if page is None and pages > 1:
        raise RefineError(f"{path}: has {what}; choose one with --page 1 to {pages}, or save it as a file")
    if page is not None and page > pages:
        raise RefineError(f"{path}: has no page {page}; choose one with --page 1 to {pages}")
    return 0 if page is None else page - 1


def check_channel(path: str | Path, channel: int | None, channels: int) -> int:
    """Return the number, from 0, of the channel to read; see `check_page`."""
    if channel is None and channels > 1:
        raise RefineError(
            f"{path}: has {channels} channels; choose one with --channel 1 to {channels}, or save it as a file"
        )
    if channel is not None and channel > channels:
        raise RefineError(f"{path}: has no channel {channel}; choose one with --channel 1 to {channels}")
    return 0 if channel is None else channel - 1


def to_bytes(
    values: np.ndarray,
    chosen: Range | Literal["full"] | None = None,
    stated: Range | None = None,
    tell: Callable[[str], None] | None = None,
) -> np.ndarray:
    """Scale values linearly to 0-255, clipping what lies outside the range.

    Cameras of 10 to 14 bits write files of 16 bits, so the data type does not tell the range. In this order it is
    the chosen one, the one that the file states unless a value exceeds it, or the one between `PERCENTILES`.

    Args:
        values: integers or floats of any shape; uint8 and bool are only widened to 0-255.
        chosen: what the user asks for; "full" is the range of an integer type, and 0-1 of floats.
        stated: what the file says of itself.
        tell: called with one line if the range was estimated.

    Returns:
        uint8 of the same shape.

    Raises:
        ValueError: values that are not finite, or complex.
    """
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    if values.dtype == np.uint8 or not values.size:
        return values.astype(np.uint8)
    if values.dtype.kind not in "iuf":
        raise ValueError(f"its values are {values.dtype}, expected integers or floats")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError("it has values that are not finite")
    if chosen == "full":
        low, high = _full(values.dtype)
    elif chosen is not None:
        low, high = chosen
    elif stated is not None and stated[0] <= values.min() and values.max() <= stated[1]:
        low, high = stated
    else:
        low, high = _percentiles(values)
        if tell is not None:
            tell(
                f"values {low:g} to {high:g}, the percentiles {PERCENTILES[0]} and {PERCENTILES[1]}, become 0 to "
                f"255; --range LOW HIGH sets others"
            )
    if values.dtype.kind in "iu" and values.dtype.itemsize == 2:
        info = np.iinfo(values.dtype)
        table = _scale(np.arange(info.min, info.max + 1), low, high)
        table = np.roll(table, info.min)  # negative values index from the end
        return table[values]
    result = np.empty(values.shape, np.uint8)
    for source, target in zip(np.atleast_2d(values), np.atleast_2d(result), strict=True):  # row by row
        target[...] = _scale(source, low, high)
    return result


def _scale(values: np.ndarray, low: float, high: float) -> np.ndarray:
    with np.errstate(over="ignore"):
        scaled = (values.astype(np.float64) - low) * (255 / (high - low) if high > low else 0)
    return np.rint(scaled.clip(0, 255)).astype(np.uint8)


def _full(kind: np.dtype) -> Range:
    if kind.kind == "f":
        return 0.0, 1.0
    info = np.iinfo(kind)
    return float(info.min), float(info.max)


def _percentiles(values: np.ndarray) -> Range:
    step = max(1, round((values.size / SAMPLE) ** 0.5))
    sample = values[::step, ::step] if values.ndim > 1 else values
    low, high = np.percentile(sample, PERCENTILES, method="inverted_cdf")
    return float(low), float(high)
