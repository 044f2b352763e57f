"""Pixels of any bit depth and number of channels, and their conversion to 8 bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image

from refine.errors import RefineError

TILE_IT = "tile it: save it as a tiled TIFF and predict it with refine predict --tile 1024"
"""What to do with an image that is too large to be decoded whole."""
Range = tuple[float, float]
"""Values that are mapped to 0 and 255."""
PERCENTILES = (0.1, 99.9)
"""Percentiles that are mapped to 0 and 255 if the file does not state a range."""
SAMPLE = 1 << 20
"""Approximate number of pixels from which the percentiles are estimated."""


Exif = Literal["shown", "stored"]
"""How an image with an EXIF rotation is used."""


@dataclass(frozen=True)
class ImageOptions:
    """Selection of one 8-bit image from a file with pages, channels or more than 8 bits.

    Attributes:
        page: number, from 1, of a page of a stack or a frame of an animation; None rejects files with several.
        channel: number, from 1, of the channel to read as grey; None reads grey and RGB and rejects other files.
        range: values of images of more than 8 bits that are mapped to 0 and 255: a pair, "full" for the whole
            range of the data type, or None for the default of `to_bytes`.
        exif: how an image with an EXIF rotation is used: "shown" (rotated upright) or "stored" (as in the file);
            None rotates it unless only the stored image has the size of its annotation.
    """

    page: int | None = None
    channel: int | None = None
    range: Range | Literal["full"] | None = None
    exif: Exif | None = None


@dataclass(frozen=True)
class RawImage:
    """Decoded pixels of any bit depth and number of channels.

    Attributes:
        values: [H, W] or [H, W, C] integers or floats.
        stated: range of values stated by the file, or None.
        is_rgb: whether the first three channels are red, green and blue.
        has_alpha: whether the last channel is opacity.
        multiplied: whether the other channels are stored multiplied by the opacity.
        inverted: whether the lowest value is white.
        orientation: EXIF orientation, 1-8.
    """

    values: np.ndarray
    stated: Range | None = None
    is_rgb: bool = False
    has_alpha: bool = False
    multiplied: bool = False
    inverted: bool = False
    orientation: int = 1

    def channels(self, path: str | Path, channel: int | None = None) -> np.ndarray:
        """Return the stored values of one or three channels, without alpha: [H, W, C]; arguments as in `to_pil`."""
        values = self.values.reshape(*self.values.shape[:2], -1)
        colors = values[..., :-1] if self.has_alpha else values
        if channel is not None or not (self.is_rgb and colors.shape[2] in (3, 4)):
            return colors[..., [check_channel(path, channel, colors.shape[2])]]
        return colors[..., :3]  # a fourth has no defined meaning

    def colors(self, path: str | Path, channel: int | None = None) -> np.ndarray:
        """Return `channels`, divided by the opacity if they are stored multiplied by it."""
        stored = self.channels(path, channel)
        return _divided(stored, self.values[..., -1:]) if self.multiplied else stored

    def to_pil(
        self,
        path: str | Path,
        channel: int | None = None,
        requested: Range | Literal["full"] | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> Image.Image:
        """Convert to an 8-bit image, grey or RGB, with or without alpha; the EXIF data give the orientation.

        Args:
            path: path of the file, for error messages.
            channel: number, from 1, of the channel to return as grey, or None for all.
            requested, notify: as in `to_bytes`; one range for all channels.

        Raises:
            RefineError: the channel does not exist, or there are several that are not RGB and none is selected.
            ValueError: as in `to_bytes`.
        """
        colors = to_bytes(self.colors(path, channel), requested, self.stated, notify)
        if self.inverted:
            colors = 255 - colors
        if self.has_alpha and channel is None:
            colors = np.concatenate([colors, to_bytes(self.values[..., -1:], "full")], 2)
        image = Image.fromarray(colors[..., 0] if colors.shape[2] == 1 else colors)
        image.getexif()[ExifTags.Base.Orientation] = self.orientation
        return image


def check_page(path: str | Path, page: int | None, pages: int, what: str) -> int:
    """Return the index, from 0, of the page to read.

    Args:
        path: path of the file, for error messages.
        page: requested page number, from 1, or None.
        pages: number of pages.
        what: description of the pages, for error messages.

    Raises:
        RefineError: the page does not exist, or there are several and none is selected.
    """
    if page is None and pages > 1:
        raise RefineError(
            f"{path}: has {what}; choose one with --page 1 to {pages}, or --page all in predict; or save it as a "
            "file"
        )
    if page is not None and page > pages:
        raise RefineError(f"{path}: has no page {page}; choose one with --page 1 to {pages}")
    return 0 if page is None else page - 1


def check_channel(path: str | Path, channel: int | None, channels: int) -> int:
    """Return the index, from 0, of the channel to read; see `check_page`."""
    if channel is None and channels > 1:
        raise RefineError(
            f"{path}: has {channels} channels; choose one with --channel 1 to {channels}, or save it as a file"
        )
    if channel is not None and channel > channels:
        raise RefineError(f"{path}: has no channel {channel}; choose one with --channel 1 to {channels}")
    return 0 if channel is None else channel - 1


def to_bytes(
    values: np.ndarray,
    requested: Range | Literal["full"] | None = None,
    stated: Range | None = None,
    notify: Callable[[str], None] | None = None,
) -> np.ndarray:
    """Scale values linearly to 0-255 and clip values outside the range.

    Cameras of 10 to 14 bits write 16-bit files, so the data type does not determine the range. It is the requested
    one, else the one that the file states unless a value exceeds it, else the one between `PERCENTILES`.

    Args:
        values: integers or floats of any shape; uint8 is not scaled, bool becomes 0 and 255.
        requested: range requested by the user; "full" is the range of an integer dtype, and 0-1 for floats.
        stated: range stated by the file.
        notify: called with a one-line note if the range was estimated.

    Returns:
        uint8 array of the same shape.

    Raises:
        ValueError: a value is not finite, or the values are complex.
    """
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    if values.dtype == np.uint8 or not values.size:
        return values.astype(np.uint8)
    if values.dtype.kind not in "iuf":
        raise ValueError(f"its values are {values.dtype}, expected integers or floats")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError("it has values that are not finite")
    if requested == "full":
        low, high = _full(values.dtype)
    elif requested is not None:
        low, high = requested
    elif stated is not None and stated[0] <= values.min() and values.max() <= stated[1]:
        low, high = stated
    else:
        low, high = percentiles(values)
        if notify is not None:
            notify(
                f"values {low:g} to {high:g}, the percentiles {PERCENTILES[0]} and {PERCENTILES[1]}, are mapped to "
                f"0 to 255; set another range with --range LOW,HIGH"
            )
    if values.dtype.kind in "iu" and values.dtype.itemsize == 2:
        info = np.iinfo(values.dtype)
        table = _scale(np.arange(info.min, info.max + 1), low, high)
        table = np.roll(table, info.min)  # negative values index from the end
        picked: np.ndarray = table[values]
        return picked
    result = np.empty(values.shape, np.uint8)
    for source, target in zip(np.atleast_2d(values), np.atleast_2d(result), strict=True):  # row by row
        target[...] = _scale(source, low, high)
    return result


def _divided(values: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Divide values by the opacity, of the same dtype; where that is 0 they are 0."""
    most = _full(values.dtype)[1]
    divided = np.divide(values * most, alpha, out=np.zeros(values.shape), where=alpha > 0).clip(max=most)
    rounded: np.ndarray = divided if values.dtype.kind == "f" else np.rint(divided)
    return rounded.astype(values.dtype)


def _scale(values: np.ndarray, low: float, high: float) -> np.ndarray:
    with np.errstate(over="ignore"):
        scaled = (values.astype(np.float64) - low) * (255 / (high - low) if high > low else 0)
    rounded: np.ndarray = np.rint(scaled.clip(0, 255)).astype(np.uint8)
    return rounded


def _full(kind: np.dtype) -> Range:
    if kind.kind == "f":
        return 0.0, 1.0
    info = np.iinfo(kind)
    return float(info.min), float(info.max)


def percentiles(values: np.ndarray) -> Range:
    """Return the `PERCENTILES` of values, estimated from a regular sample of about `SAMPLE` of them."""
    step = max(1, round((values.size / SAMPLE) ** 0.5))
    sample = values[::step, ::step] if values.ndim > 1 else values
    low, high = np.percentile(sample, PERCENTILES, method="inverted_cdf")
    return float(low), float(high)
