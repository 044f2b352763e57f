"""Matching of the segments of one image by panopticapi's rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refine.compiled import Kernel
from refine.errors import RefineError
from refine.formats.runs import Runs
from refine.formats.segments_info import CROWD, ID, UNSTATED, segment_rows

if TYPE_CHECKING:
    from refine.structures import Segment

VOID_ROWS = np.array([(0, -1, 0, UNSTATED)])
"""Table of void pixels, which belong to no segment."""

FORGIVES = 2
"""Value of CROWD for crowds whose pixels excuse unmatched predictions; other crowds have 1. As in panopticapi, only
the last crowd of each class in the file has this effect (COCO's annotations have at most one)."""

TP, FP, FN, IOU_HIGH, IOU_LOW = range(5)
"""Row indices of the counts per class."""

UNITS, LOW_UNITS = 2**53, 2**27
"""The IoU of every match is a float64 in (1/2, 1], thus a multiple of 2^-53. Stored as integers of two parts, the
sums are exact, independent of the order of images, and do not overflow below 2^36 matches."""

UNKNOWN_ID, WRONG_AREA = 1, 2

_count = Kernel("refine.evaluation.count")


class Side(NamedTuple):
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
        table = np.concatenate([VOID_ROWS, rows[rows[:, ID].argsort()]])
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
                f"{self.where}: the map has id {id_or_row}, which is not in segments_info; add it or paint 0 (void)"
            )
        number, _, _, area = self.table[id_or_row]
        if not pixels:
            return RefineError(
                f"{self.where}: segment {number} has no pixel in the map; drop it from segments_info"
            )
        return RefineError(
            f"{self.where}: segment {number}: area is {area} in the JSON but {pixels} pixels in the map; correct "
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
    pixels = gt.runs.shape[0] * gt.runs.shape[1]
    starts, ids, other_starts, other_ids = (
        np.ascontiguousarray(x, np.int64) for runs in (gt.runs, pred.runs) for x in (runs.starts, runs.ids)
    )
    slots = 1 << (2 * (len(ids) + len(other_ids)) - 1).bit_length()  # there are fewer pairs than runs
    gt_table, pred_table = gt.table.copy(), pred.table.copy()
    place, counts = np.zeros(slots, np.int64), np.zeros((5, classes), np.int64)
    gt_areas = np.zeros(len(gt_table), np.int64)
    pred_areas, ignored, forgiven = np.zeros((3, len(pred_table)), np.int64)
    pairs, found = np.empty((slots // 2, 3), np.int64), np.empty(2, np.int64)
    kind = _count(
        *(starts, ids, len(ids), other_starts, other_ids, len(other_ids), pixels),
        *(place, slots, gt_table, len(gt_table), pred_table, len(pred_table), counts, classes),
        *(pairs, gt_areas, pred_areas, ignored, forgiven, found),
    )
    if kind:
        raise (gt if kind > 0 else pred).contradiction(abs(kind), *found.tolist())
    return counts, _mean_pq(counts)


def _mean_pq(counts: np.ndarray) -> float:
    """PQ of [5, classes] counts: the mean over the classes that count anything, 1 if none does."""
    total, present = 0.0, counts[:, counts[: FN + 1].any(0)].T.tolist()
    for tp, fp, fn, high, low in present:  # few, so that arrays would take longer
        total += 2 * (high * LOW_UNITS + low) / UNITS / (2 * tp + fp + fn)
    return total / len(present) if present else 1.0
