"""Decoding of id-PNGs directly to runs, without decoding pixels.

A PNG row is stored as differences to a prediction from the pixels to the left (a), above (b) and above left
(c). In id maps nearly all differences are 0. Where a difference is 0, Up repeats the pixel above, and so does
Paeth if a = c; all other filters but None repeat the left pixel if b = c (Average only if a = b). A row is thus
determined by its few non-zero differences and the positions where the row above changes; everything in between
is one run.
"""

from __future__ import annotations

import deflate
import numpy as np

from refine.compiled import Kernel
from refine.formats.png import PngData
from refine.formats.runs import Runs

_unfilter = Kernel("refine.formats.unfilter")


def decode(png: PngData) -> Runs:
    """Decode the runs of an 8-bit RGB PNG in one pass.

    Raises:
        ValueError, deflate.DeflateError: the pixel data are damaged.
    """
    height, width = png.size
    size = height * (3 * width + 1)
    rows = np.frombuffer(deflate.zlib_decompress(png.idat, size), np.uint8)
    if rows.size != size:
        raise ValueError("its pixels do not fill its rows")
    # Only the pages that are written take memory.
    positions, starts, ids = (np.empty(n, np.int64) for n in (size + 1, height * width, height * width))
    count = _unfilter(rows, rows, height, width, positions, starts, ids)
    if not count:
        raise ValueError("its rows use an unknown filter")
    return Runs(starts[:count].copy(), ids[:count].copy(), png.size)
