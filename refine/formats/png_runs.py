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

from refine.compiled import compiled
from refine.formats.png import PngData
from refine.formats.runs import Runs

NONE, SUB, UP, AVERAGE, PAETH = range(5)


def decode(png: PngData) -> Runs:
    """Decode the runs of an 8-bit RGB PNG in one pass.

    Raises:
        ValueError, deflate.DeflateError: the pixel data are damaged.
    """
    height, width = png.size
    stride = 3 * width + 1
    rows = np.frombuffer(deflate.zlib_decompress(png.idat, height * stride), np.uint8)
    if rows.size != height * stride or rows[::stride].max() > PAETH:
        raise ValueError("its pixels do not fill its rows")
    starts, ids = _unfilter(rows, rows[: rows.size // 64 * 64].view(np.uint64).reshape(-1, 8), height, width)
    return Runs(starts, ids, png.size)


@compiled
def _unfilter(data: np.ndarray, words: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the starts and ids of runs, none if a filter is unknown (PNG, §9).

    A colour is processed as its id, three bytes in one integer.
    """
    positions = _nonzero_bytes(data, words)
    starts, ids = np.empty(height * width, np.int64), np.empty(height * width, np.int64)
    count = next_byte = 0
    above = above_end = 0  # runs of the row above that begin at or after the current column
    for row in range(height):
        begin = row * (3 * width + 1) + 1  # first pixel of the row
        method = data[begin - 1]
        if method > PAETH:
            return starts[:0].copy(), ids[:0].copy()
        if method != NONE:  # the filter byte itself is non-zero
            next_byte += 1
        row_above, first_run = (row - 1) * width, count
        left = up = up_left = column = 0
        while column < width:
            if above < above_end and starts[above] == row_above + column:
                up = ids[above]
                above += 1
            difference = 0
            while positions[next_byte] < begin + 3 * column + 3:
                byte = positions[next_byte]
                difference |= np.int64(data[byte]) << (8 * (byte - begin - 3 * column))
                next_byte += 1
            pixel = _predict(method, left, up, up_left)
            if difference:
                pixel = _add(pixel, difference)
            if pixel != left or column == 0:
                starts[count] = row * width + column
                ids[count] = pixel
                count += 1
            stop = min(width, (positions[next_byte] - begin) // 3)  # differences are 0 up to this column
            if pixel == up and method in (UP, PAETH):
                while above < above_end and starts[above] < row_above + stop:
                    starts[count] = starts[above] + width
                    ids[count] = up = ids[above]
                    count += 1
                    above += 1
                column, pixel = stop, up
            elif method in (SUB, PAETH) or pixel == (0 if method == NONE else up):
                column = min(stop, starts[above] - row_above) if above < above_end else stop
            else:
                column += 1
            left, up_left = pixel, up
        above, above_end = first_run, count
    return starts[:count].copy(), ids[:count].copy()


@compiled
def _nonzero_bytes(data: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Return the positions of non-zero bytes and a sentinel; `words` is the data as 8-byte words, [B, 8].

    The result has data.size + 1 elements, but only the pages that are written take memory.
    """
    positions, count = np.empty(data.size + 1, np.int64), 0
    for block in range(len(words)):
        some = np.uint64(0)
        for word in words[block]:
            some |= word
        if some:
            for n in range(8):
                if words[block, n]:
                    begin = 64 * block + 8 * n
                    for position in range(begin, begin + 8):
                        positions[count] = position
                        count += data[position] != 0
    for position in range(8 * words.size, data.size):
        positions[count] = position
        count += data[position] != 0
    positions[count] = data.size + 2  # beyond the last byte of any pixel
    return positions


@compiled
def _predict(method: int, left: int, up: int, up_left: int) -> int:
    """Return the prediction of a PNG filter for the three bytes of a pixel at once."""
    if method == UP:
        return up
    if method == SUB:
        return left
    if method == NONE:
        return 0
    if method == AVERAGE:  # half the sum, without carries between bytes
        return (left & up) + (((left ^ up) >> 1) & 0x7F7F7F)
    if left == up_left:
        return up
    if up == up_left:
        return left
    return _paeth(left, up, up_left)


@compiled
def _paeth(left: int, up: int, up_left: int) -> int:
    """Return, byte by byte, the one of the three that is nearest to left + up - up_left."""
    result = 0
    for shift in (0, 8, 16):
        a, b, c = (left >> shift) & 255, (up >> shift) & 255, (up_left >> shift) & 255
        to_a, to_b, to_c = abs(b - c), abs(a - c), abs(a + b - 2 * c)
        nearest = b if to_b <= to_c else c
        if to_a <= to_b and to_a <= to_c:
            nearest = a
        result |= nearest << shift
    return result


@compiled
def _add(first: int, second: int) -> int:
    """Add three bytes at once, each modulo 256."""
    return ((first & 0x7F7F7F) + (second & 0x7F7F7F)) ^ ((first ^ second) & 0x808080)
