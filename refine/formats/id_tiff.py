"""Id maps of large images as tiled TIFF files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from refine.errors import RefineError
from refine.files import replacing
from refine.formats.runs import Runs

if TYPE_CHECKING:
    from pathlib import Path

    from tifffile import TiffPage
    from torch import Tensor

SIDE = 256
"""Side of a tile in pixels."""
TIFF_IDS = 2**32
"""Exclusive upper limit of the ids in these files."""


def is_id_tiff(name: str | Path) -> bool:
    """Return whether a map is stored as TIFF, by its name."""
    return os.path.splitext(name)[1].lower() in (".tif", ".tiff")


def write_id_tiff(path: Path, bands: Iterable[Tensor], size: tuple[int, int], mpp: float | None = None) -> None:
    """Write a map as a BigTIFF of unsigned 32-bit ids in compressed tiles, atomically.

    Args:
        path: path of the file.
        bands: the map from the top, each band Tensor[h, W] integer of `SIDE` rows, the last of as many as remain.
        size: (height, width) of the map in pixels.
        mpp: resolution in micrometres per pixel, or None.

    Raises:
        WriteError: the file cannot be written. An earlier file of this name is unchanged.
    """
    from tifffile import TiffWriter  # imported late: takes half a second

    stated: dict[str, Any] = {}
    if mpp is not None:
        stated = {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    with replacing(path) as file, TiffWriter(file, bigtiff=True) as tiff:
        tiff.write(
            _tiles(bands),
            shape=size,
            dtype="uint32",
            tile=(SIDE, SIDE),
            compression="zlib",
            compressionargs={"level": 1},
            photometric="minisblack",
            metadata=None,
            **stated,
        )


def _tiles(bands: Iterable[Tensor]) -> Iterator[np.ndarray]:
    """Cut bands into tiles, padded with zeros."""
    for band in bands:
        ids = band.numpy().astype(np.uint32)
        ids = np.pad(ids, ((0, -ids.shape[0] % SIDE), (0, -ids.shape[1] % SIDE)))
        for left in range(0, ids.shape[1], SIDE):
            yield np.ascontiguousarray(ids[:, left : left + SIDE])


def read_tiff_runs(path: str | Path, size: tuple[int, int] | None = None) -> Runs:
    """Read a map of unsigned integers, such as `write_id_tiff` writes; its runs and one row of tiles are in memory.

    Args:
        path: path of the file.
        size: expected (height, width) in pixels, or None for any.

    Raises:
        RefineError: the file is missing, damaged, of another size, or no map of ids.
    """
    from refine.formats.tiff import check_expansion, opened  # imported late: takes half a second

    try:
        with opened(path) as tiff:
            page = tiff.pages.first
            if page.dtype is None or page.dtype.kind != "u" or len(page.shape) != 2:
                raise RefineError(f"{path}: expected a grey TIFF of unsigned integers; write one id per pixel")
            height, width = page.shape
            if size is not None and size != (height, width):
                raise RefineError(f"{path}: expected {size[1]} × {size[0]} pixels, got {width} × {height}")
            check_expansion(page, page)
            return Runs.stacked([Runs.from_map(band) for band in _bands(page)])
    except OSError as error:
        raise RefineError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error


def _bands(page: TiffPage) -> Iterator[np.ndarray]:
    """Yield the rows of tiles of a page, or its strips, from the top."""
    (height, width), band = page.shape, np.zeros((0, 0), page.dtype)
    for pixels, (_, _, top, left, _), (_, rows, columns, _) in page.segments(maxworkers=1):
        rows, columns = min(rows, height - top), min(columns, width - left)  # without the padding
        if left == 0:
            band = np.zeros((rows, width), page.dtype)
        if pixels is not None:  # tiles of zeros may be left out
            band[:, left : left + columns] = pixels[0, :rows, :columns, 0]
        if left + columns == width:
            yield band
