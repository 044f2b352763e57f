"""Id maps of large images as tiled TIFF files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from refine.files import replacing

if TYPE_CHECKING:
    from torch import Tensor

SIDE = 256
"""Side of a tile in pixels."""


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
