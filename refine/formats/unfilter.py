"""The loop of `refine.formats.png_runs`, for numba. Imported only to be compiled (`refine.compiled.Kernel`)."""

from __future__ import annotations

from numba import njit, types

from refine.compiled import BARE

NONE, SUB, UP, AVERAGE, PAETH = range(5)

BYTES, WORDS, NUMBERS = (types.CPointer(kind) for kind in (types.uint8, types.uint64, types.int64))


@njit
def _nonzero_bytes(data, size, words, positions):
    """Write the positions of non-zero bytes and a sentinel to `positions`; `words` is `data` as 8-byte words."""
    count = 0
    for block in range(size // 64):
        some = types.uint64(0)
        for n in range(8 * block, 8 * block + 8):
            some |= words[n]
        if some:
            for n in range(8 * block, 8 * block + 8):
                if words[n]:
                    for position in range(8 * n, 8 * n + 8):
                        positions[count] = position
                        count += data[position] != 0
    for position in range(size // 64 * 64, size):
        positions[count] = position
        count += data[position] != 0
    positions[count] = size + 2  # beyond the last byte of any pixel


@njit
def _predict(method, left, up, up_left):
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


@njit
def _paeth(left, up, up_left):
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


@njit
def _add(first, second):
    """Add three bytes at once, each modulo 256."""
    return ((first & 0x7F7F7F) + (second & 0x7F7F7F)) ^ ((first ^ second) & 0x808080)


@njit(types.int64(BYTES, WORDS, types.int64, types.int64, NUMBERS, NUMBERS, NUMBERS), **BARE)
def kernel(data, words, height, width, positions, starts, ids):
    """Undo the filters of an 8-bit RGB PNG; a colour is processed as its id, three bytes in one integer (PNG, §9).

    Args:
        data: [height · (3 width + 1)] uint8, the rows.
        words: the same memory, uint64.
        height, width: in pixels.
        positions: [1 + size of data] int64, scratch.
        starts, ids: [height · width] int64, filled with the runs.

    Returns:
        Their number, 0 if a filter is unknown.
    """
    _nonzero_bytes(data, height * (3 * width + 1), words, positions)
    count = next_byte = 0
    above = above_end = 0  # runs of the row above that begin at or after the current column
    for row in range(height):
        begin = row * (3 * width + 1) + 1  # of the row's first pixel
        method = data[begin - 1]
        if method > PAETH:
            return 0
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
                difference |= types.int64(data[byte]) << (8 * (byte - begin - 3 * column))
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
    return count
