"""PNGs of labels: id maps (id = R + 256 G + 65536 B, 0 = void) and grey label maps."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import cv2
import deflate
import numpy as np

from refine.errors import RefineError
from refine.formats import png_runs
from refine.formats.png import GRAY, PALETTE, RGB, RGBA, PngData, read_container
from refine.formats.runs import Runs

_LARGE = 2**24
"""Pixels from which maps are decoded one at a time, so that memory stays bounded with any number of threads."""

_one_large_map = threading.Lock()


def read_png(path: str | Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read an id-PNG: [H, W] int32.

    Args:
        path: 8-bit RGB; an alpha channel is ignored, and a palette gives its RGB colours.
        size: expected (height, width), or None for any; checked before pixels are decoded.

    Raises:
        RefineError: missing, damaged, of another size, or of a mode that holds no ids.
    """
    png = _id_container(path, size)
    with _turn(png):
        return _pixels(png, path)


def read_runs(path: str | Path, size: tuple[int, int] | None = None) -> Runs:
    """Read an id-PNG, equal to `Runs.from_map(read_png(path, size))`, mostly without making pixels.

    Raises:
        RefineError: as `read_png`.
    """
    png = _id_container(path, size)
    with _turn(png):
        if png.color != RGB or png.interlaced:
            return Runs.from_map(_pixels(png, path))
        try:
            return png_runs.decode(png)
        except (deflate.DeflateError, ValueError) as error:
            raise RefineError(f"{path}: is damaged ({error}); write it again") from error


def read_gray(path: str | Path) -> np.ndarray:
    """Read a grey PNG of labels: [H, W] int32.

    Raises:
        RefineError: missing, damaged, or not of one channel of 8 or 16 bits.
    """
    png = read_container(path)
    if png.color != GRAY or png.depth not in (8, 16):
        raise RefineError(f"{path}: expected a grey PNG of 8 or 16 bits, got {png.mode}; write it in grey")
    with _turn(png):
        return _decode(png, path, cv2.IMREAD_UNCHANGED).astype(np.int32)


def _id_container(path: str | Path, size: tuple[int, int] | None) -> PngData:
    png = read_container(path, size)
    if png.color != PALETTE and (png.color not in (RGB, RGBA) or png.depth != 8):
        raise RefineError(f"{path}: expected an 8-bit RGB PNG, got {png.mode}; write id = R + 256 G + 65536 B")
    return png


def _turn(png: PngData) -> AbstractContextManager[object]:
    return _one_large_map if png.size[0] * png.size[1] > _LARGE else nullcontext()


def _pixels(png: PngData, path: str | Path) -> np.ndarray:
    bgr = _decode(png, path, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    # Four bytes R, G, B, 255 are the id and 255 · 2^24, little-endian: one conversion and one mask.
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGBA).view("<i4")[..., 0] & 0xFFFFFF


def _decode(png: PngData, path: str | Path, flags: int) -> np.ndarray:
    pixels = cv2.imdecode(np.frombuffer(png.data, np.uint8), flags)
    if pixels is None or pixels.shape[:2] != png.size:
        raise RefineError(f"{path}: is damaged (its pixels cannot be decoded); write it again")
    return pixels
