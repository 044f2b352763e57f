"""Id-PNGs to runs without ever making the pixels.

A PNG row is stored as differences to a prediction from pixels at its left (a), above (b) and above left
(c). In id maps nearly all differences are 0. Where a difference is 0, Up repeats the pixel above, and Paeth
does if a = c; all others but None repeat the left pixel where b = c (Average only if a = b). So a row is
known from its few non-zero differences and the places where the row above changes; everything between is
one run.
"""

from __future__ import annotations

import deflate
import numpy as np

from refine.compiled import compiled
from refine.formats.png import PngData
from refine.formats.runs import Runs

NONE, SUB, UP, AVERAGE, PAETH = range(5)


def decode(png: PngData) -> Runs:
    """Return the runs of an 8-bit RGB PNG in one pass.

    Raises:
        ValueError, deflate.DeflateError: its pixels are damaged.
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
    """Starts and ids of runs, none if a filter is unknown; a colour is handled as its id, three bytes in one
    integer (PNG, §9)."""
    positions = _nonzero_bytes(data, words)
    starts, ids = np.empty(height * width, np.int64), np.empty(height * width, np.int64)
    count = next_byte = 0
    above = above_end = 0  # runs of the row above that the column has not reached
    for row in range(height):
        begin = row * (3 * width + 1) + 1  # of the row's first pixel
        method = data[begin - 1]
        if method > PAETH:
            return starts[:0].copy(), ids[:0].copy()
        if method != NONE:  # it is a non-zero byte itself
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
            stop = min(width, (positions[next_byte] - begin) // 3)  # differences are 0 up to there
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
    """Positions of non-zero bytes, and one past all; `words` is the data by eight bytes, [B, 8].

    Of the [data.size + 1] returned, the operating system gives only what is filled.
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
    positions[count] = data.size + 2  # further than any pixel's last byte
    return positions


@compiled
def _predict(method: int, left: int, up: int, up_left: int) -> int:
    """What PNG's filters expect of a pixel, for its three bytes at once."""
    if method == UP:
        return up
    if method == SUB:
        return left
    if method == NONE:
        return 0
    if method == AVERAGE:  # half the sum, without letting bits cross between bytes
        return (left & up) + (((left ^ up) >> 1) & 0x7F7F7F)
    if left == up_left:
        return up
    if up == up_left:
        return left
    return _paeth(left, up, up_left)


@compiled
def _paeth(left: int, up: int, up_left: int) -> int:
    """Byte by byte, whichever of the three is nearest to left + up - up_left."""
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
    """Sum of three bytes at once, each modulo 256."""
    return ((first & 0x7F7F7F) + (second & 0x7F7F7F)) ^ ((first ^ second) & 0x808080)
