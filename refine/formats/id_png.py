"""Label PNGs, read and written: id maps (id = R + 256 G + 65536 B, 0 = void) and grey label maps."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import deflate
import numpy as np

from refine.errors import RefineError
from refine.formats import png_runs
from refine.formats.png import GRAY, PALETTE, RGB, RGBA, PngData, read_container
from refine.formats.runs import Runs

if TYPE_CHECKING:
    from pathlib import Path

    from refine.storage import Location

_LARGE = 2**24
"""Number of pixels above which maps are decoded one at a time, to limit memory with any number of threads."""

_one_large_map = threading.Lock()


def read_png(path: str | Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read the segment ids of an id-PNG: [H, W] int32.

    Args:
        path: 8-bit RGB PNG; alpha is ignored, palette indices are replaced by their RGB colours.
        size: expected (height, width) in pixels, or None for any; checked before decoding.

    Raises:
        RefineError: the file is missing, damaged, of another size, or of a mode that cannot encode ids.
    """
    png = _id_container(path, size)
    with _memory_lock(png):
        return _pixels(png, path)


def read_runs(path: str | Path, size: tuple[int, int] | None = None) -> Runs:
    """Return `Runs.from_map(read_png(path, size))`, in most cases without decoding pixels.

    Raises:
        RefineError: as in `read_png`.
    """
    png = _id_container(path, size)
    with _memory_lock(png):
        if png.color != RGB or png.interlaced:
            return Runs.from_map(_pixels(png, path))
        try:
            return png_runs.decode(png)
        except (deflate.DeflateError, ValueError) as error:
            raise RefineError(f"{path}: is damaged ({error}); write it again") from error


def read_gray(path: str | Path) -> np.ndarray:
    """Read a grey PNG of labels: [H, W] int32.

    Raises:
        RefineError: the file is missing, damaged, or not grey with 8 or 16 bits.
    """
    png = read_container(path)
    if png.color != GRAY or png.depth not in (8, 16):
        raise RefineError(f"{path}: expected a grey PNG of 8 or 16 bits, got {png.mode}; write it in grey")
    with _memory_lock(png):
        return _decode(png, path).astype(np.int32)


def _id_container(path: str | Path, size: tuple[int, int] | None) -> PngData:
    png = read_container(path, size)
    if png.color != PALETTE and (png.color not in (RGB, RGBA) or png.depth != 8):
        raise RefineError(f"{path}: expected an 8-bit RGB PNG, got {png.mode}; write id = R + 256 G + 65536 B")
    return png


def _memory_lock(png: PngData) -> AbstractContextManager[object]:
    return _one_large_map if png.size[0] * png.size[1] > _LARGE else nullcontext()


def _pixels(png: PngData, path: str | Path) -> np.ndarray:
    import cv2  # imported late: evaluation of files that are all RGB does without

    bgr = _decode(png, path, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    # The bytes R, G, B, 255 are id + 255 · 2^24 in little-endian order: one conversion and one bit mask.
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGBA).view("<i4")[..., 0] & 0xFFFFFF


def _decode(png: PngData, path: str | Path, flags: int = -1) -> np.ndarray:
    """Pixels as OpenCV's flags ask for them; as they are stored by default (`cv2.IMREAD_UNCHANGED`)."""
    import cv2

    pixels = cv2.imdecode(np.frombuffer(png.data, np.uint8), flags)
    if pixels is None or pixels.shape[:2] != png.size:
        raise RefineError(f"{path}: is damaged (its pixels cannot be decoded); write it again")
    return pixels


def write_png(path: str | Location, segment_ids: np.ndarray) -> None:
    """Write segment ids, [H, W] integer, as an id-PNG, atomically.

    Raises:
        ValueError: the ids are not a map of integers in 0..2^24-1.
        RefineError: the file cannot be written.
    """
    import cv2

    from refine.storage import write_bytes  # reading maps does without

    if segment_ids.ndim != 2 or segment_ids.dtype.kind not in "iu" or not segment_ids.size:
        raise ValueError(f"write_png: expected integers [H, W], got {segment_ids.dtype} {segment_ids.shape}")
    if segment_ids.min() < 0 or segment_ids.max() >= 2**24:
        raise ValueError(f"write_png: expected ids 0..2^24-1, got {segment_ids.min()}..{segment_ids.max()}")
    rgb0 = np.ascontiguousarray(segment_ids, "<u4").view(np.uint8).reshape(*segment_ids.shape, 4)
    # OpenCV's default (fast compression) writes a 640 x 480 map in 2 ms; the best compression takes ten times that.
    _, data = cv2.imencode(".png", cv2.cvtColor(rgb0, cv2.COLOR_RGBA2BGR))
    write_bytes(path, data.data)
