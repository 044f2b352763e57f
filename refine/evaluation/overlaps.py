"""Overlaps between the segments of two maps given as runs."""

from __future__ import annotations

import numpy as np

from refine.compiled import compiled


@compiled
def overlaps(
    starts: np.ndarray, ids: np.ndarray, other_starts: np.ndarray, other_ids: np.ndarray, pixels: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count the pixels of each pair of ids, in one pass over both lists of runs, in an open-addressing hash table.

    Args:
        starts, ids: runs of the first map, [R] int64 (see `Runs`).
        other_starts, other_ids: runs of the second map, [R'] int64.
        pixels: number of pixels of each map.

    Returns:
        Id in the first map, id in the second map and number of common pixels of each pair; all [P] int64, in
        unspecified order.
    """
    slots = 1
    while slots < 2 * (starts.size + other_starts.size):
        slots *= 2
    table = np.zeros(slots, np.int64)  # 1 + index of the pair, 0 = free
    a = np.empty(slots // 2, np.int64)
    b, sums = np.empty_like(a), np.empty_like(a)
    count = n = m = begin = 0
    while begin < pixels:
        end = starts[n + 1] if n + 1 < starts.size else pixels
        other_end = other_starts[m + 1] if m + 1 < other_starts.size else pixels
        first, second = ids[n], other_ids[m]
        slot = ((first * 0x9E3779B1 + second * 0x85EBCA6B) >> 16) & (slots - 1)
        while table[slot] and (a[table[slot] - 1] != first or b[table[slot] - 1] != second):
            slot = (slot + 1) & (slots - 1)
        if not table[slot]:
            a[count], b[count], sums[count] = first, second, 0
            count += 1
            table[slot] = count
        stop = min(end, other_end)
        sums[table[slot] - 1] += stop - begin
        n += end == stop
        m += other_end == stop
        begin = stop
    return a[:count].copy(), b[:count].copy(), sums[:count].copy()
