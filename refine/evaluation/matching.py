"""Matching of the segments of one image by panopticapi's rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from refine.compiled import compiled
from refine.errors import RefineError
from refine.evaluation.overlaps import overlaps
from refine.formats.runs import Runs
from refine.formats.segments_info import AREA, CLASS, CROWD, ID, UNSTATED, segment_rows

if TYPE_CHECKING:
    from refine.structures import Segment

VOID_ROW = (0, -1, 0, UNSTATED)
"""Table row of void pixels, which belong to no segment."""

FORGIVES = 2
"""Value of CROWD for crowds whose pixels excuse unmatched predictions; other crowds have 1. As in panopticapi, only
the last crowd of each class in the file has this effect (COCO's annotations have at most one)."""

TP, FP, FN, IOU_HIGH, IOU_LOW = range(5)
"""Row indices of the counts per class."""

UNITS, LOW_UNITS = 2**53, 2**27
"""The IoU of every match is a float64 in (1/2, 1], thus a multiple of 2^-53. Stored as integers of two parts, the
sums are exact, independent of the order of images, and do not overflow below 2^36 matches."""

UNKNOWN_ID, WRONG_AREA = 1, 2


@dataclass(frozen=True)
class Side:
    """Ground truth or prediction of one image.

    Attributes:
        runs: map of segment ids as runs.
        table: [1 + S, 4] int64, ID, CLASS (contiguous class), CROWD and AREA (as stated, or `UNSTATED`) of the
            segments, sorted by id; row 0 is void.
        where: prefix of error messages, such as the file and image.
    """

    runs: Runs
    table: np.ndarray
    where: str

    @classmethod
    def of(cls, runs: Runs, rows: np.ndarray, where: str) -> Side:
        """Sort validated segments, [S, 4] int64 in the order of the file, by id."""
        table = np.concatenate([[VOID_ROW], rows[np.argsort(rows[:, ID])]])
        if table[:, CROWD].any():
            crowds = rows[rows[:, CROWD] != 0, :2].tolist()
            forgiving = list({label: number for number, label in crowds}.values())
            table[:, CROWD] = np.where(np.isin(table[:, ID], forgiving), FORGIVES, table[:, CROWD] != 0)
        return cls(runs, table, where)

    @classmethod
    def checked(
        cls, runs: Runs, segments: Sequence[Mapping[str, Any] | Segment], index: Mapping[int, int], where: str
    ) -> Side:
        """Validate and sort segments.

        Args:
            runs: map of segment ids as runs.
            segments: entries of `segments_info`, or `Segment`s.
            index: contiguous class of each category id.
            where: prefix of error messages.

        Raises:
            RefineError: a field is missing or invalid, a category is unknown, or an id is used twice.
        """

        def fault(message: str) -> None:
            raise RefineError(f"{where}: {message}")

        entries = [dict(segment) if isinstance(segment, Mapping) else vars(segment) for segment in segments]
        return cls.of(runs, np.array(segment_rows(entries, index, fault), np.int64).reshape(-1, 4), where)

    def contradiction(self, kind: int, id_or_row: int, pixels: int) -> RefineError:
        """Return the error for a contradiction that `_count` found."""
        if kind == UNKNOWN_ID:
            return RefineError(
                f"{self.where}: the PNG has id {id_or_row}, which is not in segments_info; add it or paint 0 (void)"
            )
        number, _, _, area = self.table[id_or_row]
        if not pixels:
            return RefineError(
                f"{self.where}: segment {number} has no pixel in the PNG; drop it from segments_info"
            )
        return RefineError(
            f"{self.where}: segment {number}: area is {area} in the JSON but {pixels} pixels in the PNG; correct "
            f"the JSON"
        )


def match(gt: Side, pred: Side, classes: int) -> tuple[np.ndarray, float]:
    """Match the segments of two maps of the same size.

    A predicted and a true segment of one class match if their IoU exceeds 1/2, where the union excludes
    predicted pixels on void. Crowds never match and are never false negatives. An unmatched prediction is not
    a false positive if more than half of it lies on void and on the crowd of its class. All comparisons are
    between integers and therefore exact.

    Args:
        gt, pred: ground truth and prediction of one image.
        classes: number of classes.

    Returns:
        [5, classes] int64, TP, FP, FN and the summed IoU of the matches in `UNITS`, as IOU_HIGH · LOW_UNITS +
        IOU_LOW; and PQ, the mean over the classes with any count (1 if there is none).

    Raises:
        RefineError: pixels and segments contradict each other.
    """
    a, b = gt.runs, pred.runs
    shared = overlaps(a.starts, a.ids, b.starts, b.ids, a.shape[0] * a.shape[1])
    counts, pq, side, kind, id_or_row, pixels = _count(gt.table, pred.table, *shared, classes)
    if kind:
        raise (pred if side else gt).contradiction(kind, id_or_row, pixels)
    return counts, pq


@compiled
def _count(
    gt: np.ndarray, pred: np.ndarray, gt_ids: np.ndarray, pred_ids: np.ndarray, shared: np.ndarray, classes: int
) -> tuple[np.ndarray, float, int, int, int, int]:
    """Compute `match` and the first contradiction: side, kind (0 if there is none), id or row, pixels."""
    counts = np.zeros((5, classes), np.int64)
    tables, ids = (gt, pred), (gt_ids, pred_ids)
    rows = np.empty((2, shared.size), np.int64)
    areas = np.zeros((2, max(len(gt), len(pred))), np.int64)
    for side in range(2):
        table = tables[side]
        for n in range(shared.size):
            number, row, end = ids[side][n], 0, len(table)
            while end - row > 1:
                middle = (row + end) // 2
                row, end = (middle, end) if table[middle, ID] <= number else (row, middle)
            if table[row, ID] != number:
                return counts, 0.0, side, UNKNOWN_ID, number, 0
            rows[side, n] = row
            areas[side, row] += shared[n]
        for row in range(1, len(table)):
            area = areas[side, row]
            if not area or (table[row, AREA] != area and table[row, AREA] != UNSTATED):
                return counts, 0.0, side, WRONG_AREA, row, area

    ignored = np.zeros(len(pred), np.int64)  # pixels of each prediction on void
    for n in range(shared.size):
        if rows[0, n] == 0:
            ignored[rows[1, n]] += shared[n]
    gt_matched, pred_matched = np.zeros(len(gt), np.bool_), np.zeros(len(pred), np.bool_)
    forgiven = ignored.copy()
    for n in range(shared.size):
        i, j = rows[0, n], rows[1, n]
        label = gt[i, CLASS]
        if not i or not j or label != pred[j, CLASS]:
            continue
        if gt[i, CROWD]:
            forgiven[j] += shared[n] if gt[i, CROWD] == FORGIVES else 0
            continue
        union = areas[0, i] + areas[1, j] - ignored[j] - shared[n]
        if 2 * shared[n] > union:
            units = np.int64(shared[n] / union * UNITS)
            counts[TP, label] += 1
            counts[IOU_HIGH, label] += units // LOW_UNITS
            counts[IOU_LOW, label] += units % LOW_UNITS
            gt_matched[i] = pred_matched[j] = True
    for i in range(1, len(gt)):
        if not gt[i, CROWD] and not gt_matched[i]:
            counts[FN, gt[i, CLASS]] += 1
    for j in range(1, len(pred)):
        if not pred_matched[j] and 2 * forgiven[j] <= areas[1, j]:
            counts[FP, pred[j, CLASS]] += 1

    total, shown = 0.0, 0
    for label in range(classes):
        twice = 2 * counts[TP, label] + counts[FP, label] + counts[FN, label]
        if twice:
            total += 2 * (counts[IOU_HIGH, label] * LOW_UNITS + counts[IOU_LOW, label]) / UNITS / twice
            shown += 1
    return counts, total / shown if shown else 1.0, 0, 0, 0, 0
