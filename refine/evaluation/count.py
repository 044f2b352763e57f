"""The loops of `refine.evaluation.matching`, for numba. Imported only to be compiled (`refine.compiled.Kernel`)."""

from __future__ import annotations

from numba import njit, types

from refine.compiled import BARE
from refine.evaluation.matching import (
    FN,
    FORGIVES,
    FP,
    IOU_HIGH,
    IOU_LOW,
    LOW_UNITS,
    TP,
    UNITS,
    UNKNOWN_ID,
    WRONG_AREA,
)
from refine.formats.segments_info import AREA, CLASS, CROWD, ID, UNSTATED

NUMBER, NUMBERS = types.int64, types.CPointer(types.int64)


@njit
def _overlaps(starts, ids, runs, other_starts, other_ids, other_runs, pixels, place, slots, pairs):
    """Count the pixels of each pair of ids, in one pass over both lists of runs, in an open-addressing hash table.

    Args:
        starts, ids: [runs] of the first map.
        other_starts, other_ids: [other_runs] of the second.
        pixels: of each map.
        place: [slots] zeros; becomes 1 + number of the pair, 0 = free.
        pairs: filled with three numbers of each pair: its id in the first map, in the second, its pixels.

    Returns:
        Number of pairs.
    """
    count = n = m = begin = 0
    while begin < pixels:
        end = starts[n + 1] if n + 1 < runs else pixels
        other_end = other_starts[m + 1] if m + 1 < other_runs else pixels
        first, second = ids[n], other_ids[m]
        slot = ((first * 0x9E3779B1 + second * 0x85EBCA6B) >> 16) & (slots - 1)
        while place[slot] and (pairs[3 * place[slot] - 3] != first or pairs[3 * place[slot] - 2] != second):
            slot = (slot + 1) & (slots - 1)
        if not place[slot]:
            pairs[3 * count], pairs[3 * count + 1], pairs[3 * count + 2] = first, second, 0
            count += 1
            place[slot] = count
        stop = min(end, other_end)
        pairs[3 * place[slot] - 1] += stop - begin
        n += end == stop
        m += other_end == stop
        begin = stop
    return count


@njit
def _row(table, rows, number):
    """Row of the last id up to this one, in a table of four columns that is sorted by ids."""
    row, end = 0, rows
    while end - row > 1:
        middle = (row + end) // 2
        if table[4 * middle + ID] <= number:
            row = middle
        else:
            end = middle
    return row


@njit
def _locate(table, rows, pairs, count, side, areas, found):
    """Turn the ids of one side of the pairs into rows of its table, and sum the areas of these.

    Returns:
        What contradicts the table, 0 if nothing does; `found` gets the id or the row, and the pixels.
    """
    for n in range(count):
        number = pairs[3 * n + side]
        row = _row(table, rows, number)
        if table[4 * row + ID] != number:
            found[0], found[1] = number, 0
            return UNKNOWN_ID
        pairs[3 * n + side] = row
        areas[row] += pairs[3 * n + 2]
    for row in range(1, rows):
        stated = table[4 * row + AREA]
        if not areas[row] or (stated != areas[row] and stated != UNSTATED):
            found[0], found[1] = row, areas[row]
            return WRONG_AREA
    return 0


@njit
def _match(pairs, count, gt, gt_rows, pred, pred_rows, counts, classes, gt_areas, pred_areas, ignored, forgiven):
    """Count matches, their IoU, and unmatched segments by class; the arguments are those of `kernel`."""
    for n in range(count):
        if pairs[3 * n] == 0:  # void
            ignored[pairs[3 * n + 1]] += pairs[3 * n + 2]
    for n in range(count):
        i, j, shared = pairs[3 * n], pairs[3 * n + 1], pairs[3 * n + 2]
        label = gt[4 * i + CLASS]
        if not i or not j or label != pred[4 * j + CLASS]:
            continue
        crowd = gt[4 * i + CROWD]
        if crowd:
            forgiven[j] += shared if crowd == FORGIVES else 0
            continue
        union = gt_areas[i] + pred_areas[j] - ignored[j] - shared
        if 2 * shared > union:
            units = types.int64(shared / union * UNITS)
            counts[TP * classes + label] += 1
            counts[IOU_HIGH * classes + label] += units // LOW_UNITS
            counts[IOU_LOW * classes + label] += units % LOW_UNITS
            gt[4 * i + ID] = pred[4 * j + ID] = -1
    for i in range(1, gt_rows):
        if not gt[4 * i + CROWD] and gt[4 * i + ID] >= 0:
            counts[FN * classes + gt[4 * i + CLASS]] += 1
    for j in range(1, pred_rows):
        if pred[4 * j + ID] >= 0 and 2 * (ignored[j] + forgiven[j]) <= pred_areas[j]:
            counts[FP * classes + pred[4 * j + CLASS]] += 1


@njit(NUMBER(*[NUMBERS, NUMBERS, NUMBER] * 2, NUMBER, *[NUMBERS, NUMBER] * 4, *[NUMBERS] * 6), **BARE)
def kernel(
    starts,
    ids,
    runs,
    other_starts,
    other_ids,
    other_runs,
    pixels,
    place,
    slots,
    gt,
    gt_rows,
    pred,
    pred_rows,
    counts,
    classes,
    pairs,
    gt_areas,
    pred_areas,
    ignored,
    forgiven,
    found,
):
    """`match`: counts of matches, or the first contradiction between pixels and segments.

    Args:
        starts, ids, runs, other_starts, other_ids, other_runs, pixels, place, slots, pairs: see `_overlaps`; the
            first map is the ground truth.
        gt, pred: [gt_rows, 4] and [pred_rows, 4], tables as in `Side`; rows are marked as matched by ID -1.
        counts: [5, classes] zeros, to be filled.
        gt_areas, pred_areas, ignored, forgiven: zeros for each row of the tables; the last two of `pred`.
        found: [2], id or row of a contradiction, and its pixels.

    Returns:
        0, or the contradiction; that of a prediction is negative.
    """
    count = _overlaps(starts, ids, runs, other_starts, other_ids, other_runs, pixels, place, slots, pairs)
    kind = _locate(gt, gt_rows, pairs, count, 0, gt_areas, found)
    if kind:
        return kind
    kind = _locate(pred, pred_rows, pairs, count, 1, pred_areas, found)
    if kind:
        return -kind
    _match(pairs, count, gt, gt_rows, pred, pred_rows, counts, classes, gt_areas, pred_areas, ignored, forgiven)
    return 0
