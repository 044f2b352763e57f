"""Windows of large TIFF files."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from tifffile import COMPRESSION, PHOTOMETRIC, TiffPageSeries
from torch import Tensor

from refine.errors import RefineError, missing_extra
from refine.files import MAX_PIXELS
from refine.formats.images import from_pil
from refine.formats.raw import Exif, ImageOptions, Range, RawImage, check_channel, percentiles
from refine.formats.resolution import mpp_of
from refine.formats.tiff import (
    GREY,
    axes_of,
    find_page,
    has_alpha,
    is_multiplied,
    opened,
    orientation_of,
    stated_range,
)

CELLS, CELL = 4, 256
"""Windows per side from which the range of values is estimated, and their side in pixels."""


class TiffWindows:
    """Windows of one page of a TIFF file at its full resolution; only the tiles or strips that they touch are read.

    Args:
        path: path of a TIFF file.
        options, notify: as for `read_image`. The range of values is estimated once, from windows over the image.

    Raises:
        RefineError: the file is damaged, or of an unsupported kind or layout, or has no such page or channel; or a
            package is missing.
    """

    def __init__(self, path: Path, options: ImageOptions, notify: Callable[[str], None] | None = None) -> None:
        try:
            import zarr
        except ImportError as error:
            raise missing_extra(f"{path}: reading parts of a large TIFF file needs zarr", "slides") from error
        self._path = path
        self._open = ExitStack()
        file = self._open.enter_context(opened(path))
        series, position = find_page(file, path, options.page)
        key, axes = series.keyframe, axes_of(series)
        self.size: tuple[int, int] = (series.shape[axes.index("Y")], series.shape[axes.index("X")])
        self.mpp = mpp_of(file, series)
        self._channel = options.channel
        if "C" in axes:
            position["C"], self._channel = check_channel(path, options.channel, series.shape[axes.index("C")]), None
        self._check(series, options.exif)
        self._index = [position.get(axis, slice(None)) for axis in axes]
        self._axes, self._left = axes, "".join(axis for axis in axes if axis in "YXS")
        # Pages of a stack without headers of their own lie in the file as one array.
        self._array: Any = (
            np.memmap(
                path, np.dtype(series.dtype).newbyteorder(file.byteorder), "r", series.dataoffset, series.shape
            )
            if series.dataoffset is not None
            else zarr.open(series.aszarr(level=0), mode="r")
        )
        self._key = key
        self._range = options.range
        if self._range is None and np.dtype(series.dtype) not in (np.uint8, np.bool_):
            self._range = self._estimate(stated_range(file, key))
            if notify is not None:
                low, high = self._range
                notify(f"{path}: values {low:g} to {high:g} are mapped to 0 to 255; set another range with --range")

    def read(self, top: int, left: int, bottom: int, right: int) -> Tensor:
        raw = self._raw(top, left, bottom, right)
        try:
            return from_pil(raw.to_pil(self._path, self._channel, self._range))
        except ValueError as error:
            raise RefineError(
                f"{self._path}: is damaged or truncated ({error}); copy or export it again"
            ) from error

    def _raw(self, top: int, left: int, bottom: int, right: int) -> RawImage:
        """Read pixels as they are stored."""
        chosen = {"Y": slice(top, bottom), "X": slice(left, right)}
        index = tuple(chosen.get(axis, each) for axis, each in zip(self._axes, self._index, strict=True))
        try:
            values = np.asarray(self._array[index])
        except Exception as error:  # tifffile and its codecs raise any kind of exception if data are damaged
            if "imagecodecs" in str(error):
                raise missing_extra(
                    f"{self._path}: its compression needs the package imagecodecs", "tiff"
                ) from error
            raise RefineError(
                f"{self._path}: is damaged or truncated ({error}); copy or export it again"
            ) from error
        return RawImage(
            values.transpose([self._left.index(axis) for axis in "YXS" if axis in self._left]),
            is_rgb=self._key.photometric in (PHOTOMETRIC.RGB, PHOTOMETRIC.YCBCR),
            has_alpha=has_alpha(self._key),
            multiplied=is_multiplied(self._key),
            inverted=self._key.photometric == PHOTOMETRIC.MINISWHITE,
        )

    def _estimate(self, stated: Range | None) -> Range:
        """Return the stated range unless a value exceeds it, else the percentiles of windows over the image.

        As in `to_bytes`, neither alpha nor channels that are not read count.
        """
        spare = [max(0, length - CELL) for length in self.size]
        starts = [[n * each // (CELLS - 1) for n in range(CELLS)] for each in spare]
        windows = [self._raw(t, x, t + CELL, x + CELL) for t in set(starts[0]) for x in set(starts[1])]
        values = np.concatenate([raw.colors(self._path, self._channel).ravel() for raw in windows])
        if values.dtype.kind == "f":
            values = values[np.isfinite(values)]  # `read` raises for the others where they are
        if not values.size:
            return 0.0, 1.0
        if stated is not None and stated[0] <= values.min() and values.max() <= stated[1]:
            return stated
        return percentiles(values)

    def _check(self, series: TiffPageSeries, exif: Exif | None) -> None:
        """Raise RefineError for pages that cannot be read in parts."""
        key = series.keyframe
        known = key.photometric in (*GREY, PHOTOMETRIC.RGB) or (
            key.photometric == PHOTOMETRIC.YCBCR and key.compression == COMPRESSION.JPEG  # decoded to RGB
        )
        if key.dtype is None or not known:
            kind = getattr(key.photometric, "name", key.photometric)
            raise RefineError(f"{self._path}: is a TIFF of kind {kind}, which is not supported; convert it to RGB")
        if orientation_of(key) != 1 and exif != "stored":
            raise RefineError(f"{self._path}: is stored rotated; save it upright, or give --exif stored")
        if series.dataoffset is None and math.prod(key.chunks) > 8 * MAX_PIXELS // 64:
            raise RefineError(f"{self._path}: is stored in pieces of {key.chunks} values; save it as a tiled TIFF")
