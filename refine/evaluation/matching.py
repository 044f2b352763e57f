"""Segments of one image, matched by panopticapi's rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from refine.errors import RefineError
from refine.structures import VOID

if TYPE_CHECKING:
    from refine.structures import Segment

UNSTATED = -(2**62)
"""Area of a segment whose area is not stated."""

VOID_ROW = (0, -1, 0, UNSTATED)
"""Id, category, iscrowd and area of pixels that belong to no segment."""

MAX_TABLE = 2**22
"""Pairs of segments up to which overlaps are counted in a full table (32 MiB)."""


@dataclass(frozen=True)
class SegmentTable:
    """Segments of one map, by rising id; row 0 is void.

    Attributes:
        ids: [1 + S] int64.
        labels: [1 + S] int64, contiguous class; `VOID` in row 0.
        iscrowd: [1 + S] bool.
        areas: [1 + S] int64, as stated; `UNSTATED` where not.
        crowds: id of the crowd of each class that has one; of several, the last in the file's order, as
            panopticapi has it (COCO's annotations have at most one).
    """

    ids: np.ndarray
    labels: np.ndarray
    iscrowd: np.ndarray
    areas: np.ndarray
    crowds: Mapping[int, int]

    @classmethod
    def from_segments(
        cls, segments: Sequence[Mapping[str, Any] | Segment], index: Mapping[int, int], where: str
    ) -> SegmentTable:
        """Check and sort segments.

        Args:
            segments: entries of `segments_info`, or `Segment`s.
            index: contiguous class of each category id.
            where: opens messages.

        Raises:
            RefineError: a field is missing or no integer, a category unknown, an id used twice or 0.
        """
        entries = [segment if isinstance(segment, Mapping) else vars(segment) for segment in segments]
        try:
            rows = [(s["id"], s["category_id"], s.get("iscrowd", 0), s.get("area", UNSTATED)) for s in entries]
            table = np.array([VOID_ROW, *rows])
        except (KeyError, OverflowError):
            table = None
        if table is None or table.dtype != np.int64:
            raise _wrong_type(entries, where)
        table = table[table[:, 0].argsort()]
        ids, categories, iscrowd, areas = table.T
        if ids[0] < 0 or ids[-1] >= 2**24:
            wrong = ids[0] if ids[0] < 0 else ids[-1]
            raise RefineError(f"{where}: a segment has id {wrong}; number segments from 1 to 2^24 - 1 (0 is void)")
        twice = ids[1:][ids[1:] == ids[:-1]]
        if twice.size:
            hint = "make ids unique in an image" if twice[0] else "0 is void, number segments from 1"
            raise RefineError(f"{where}: segment id {twice[0]} is used twice; {hint}")
        labels = np.array([index.get(category, VOID) for category in categories.tolist()])
        labels[0] = VOID
        if (labels[1:] == VOID).any():
            n = 1 + int((labels[1:] == VOID).argmax())
            raise RefineError(
                f"{where}: segment {ids[n]}: unknown category_id {categories[n]}; use an id of the ground truth's "
                f"`categories`"
            )
        crowds = {index[category]: number for number, category, iscrowd, _ in rows if iscrowd}
        return cls(ids, labels, iscrowd != 0, areas, crowds)

    def rows(self, ids: np.ndarray, where: str) -> np.ndarray:
        """Row of each id: [R] int64.

        Raises:
            RefineError: an id that no segment has.
        """
        rows = np.searchsorted(self.ids, ids)
        np.minimum(rows, len(self.ids) - 1, out=rows)
        wrong = self.ids[rows] != ids
        if wrong.any():
            raise RefineError(
                f"{where}: the PNG has id {ids[wrong][0]}, which segments_info lacks; add it or paint 0 (void)"
            )
        return rows

    def check_areas(self, areas: np.ndarray, where: str) -> None:
        """Hold the areas stated against those counted: [1 + S] int64.

        Raises:
            RefineError: a segment without pixels, or with another number of pixels than stated.
        """
        right = (areas == self.areas) | (self.areas == UNSTATED)
        right &= areas > 0
        right[0] = True  # void has no area to state
        if right.all():
            return
        n = int(np.flatnonzero(~right)[0])
        if not areas[n]:
            raise RefineError(f"{where}: segment {self.ids[n]} has no pixel in the PNG; drop it from segments_info")
        raise RefineError(
            f"{where}: segment {self.ids[n]}: area is {self.areas[n]} in the JSON but {areas[n]} pixels in "
            f"the PNG; correct the JSON"
        )


@dataclass(frozen=True)
class Matches:
    """What one image adds.

    Attributes:
        labels: [M] int64, class of each matched pair.
        iou: [M] float64, of each matched pair, above 1/2.
        missed: [F] int64, class of each true segment without match.
        false: [E] int64, class of each prediction without match that counts.
    """

    labels: np.ndarray
    iou: np.ndarray
    missed: np.ndarray
    false: np.ndarray


def match(
    gt: SegmentTable,
    pred: SegmentTable,
    pieces: tuple[np.ndarray, np.ndarray, np.ndarray],
    gt_where: str,
    pred_where: str,
) -> Matches:
    """Match the segments of two maps.

    A predicted and a true segment of one class match if their IoU exceeds 1/2, where the union leaves out
    predicted pixels on void; crowds match nothing and are not missed; a prediction without match is
    forgiven if more than half of it lies on void and on the crowd of its class. Comparisons are between
    integers, so exact.

    Args:
        gt, pred: segments of both maps.
        pieces: true id, predicted id and pixels of pieces that make up the image, each [R].
        gt_where, pred_where: open messages.

    Raises:
        RefineError: pixels and segments contradict each other.
    """
    width = len(pred.ids)
    rows, columns = gt.rows(pieces[0], gt_where), pred.rows(pieces[1], pred_where)
    keys, overlap = _sum_by_key(rows * width + columns, pieces[2], len(gt.ids) * width)
    rows, columns = np.divmod(keys, width)
    gt_area = _sums(rows, overlap, len(gt.ids))
    pred_area = _sums(columns, overlap, width)
    gt.check_areas(gt_area, gt_where)
    pred.check_areas(pred_area, pred_where)

    on_void = rows == 0
    ignored = np.zeros(width, np.int64)
    ignored[columns[on_void]] = overlap[on_void]
    union = gt_area[rows] + (pred_area - ignored)[columns] - overlap
    hit = (gt.labels[rows] == pred.labels[columns]) & ~gt.iscrowd[rows] & (2 * overlap > union)
    hit &= (rows > 0) & (columns > 0)
    gt_rows, pred_rows = rows[hit], columns[hit]

    missed = ~gt.iscrowd
    missed[0] = False
    missed[gt_rows] = False
    for label, crowd in gt.crowds.items():
        on_crowd = (gt.ids[rows] == crowd) & (pred.labels[columns] == label)
        ignored[columns[on_crowd]] += overlap[on_crowd]
    false = 2 * ignored <= pred_area
    false[0] = False
    false[pred_rows] = False
    return Matches(gt.labels[gt_rows], overlap[hit] / union[hit], gt.labels[missed], pred.labels[false])


def _wrong_type(entries: Sequence[Mapping[str, Any]], where: str) -> RefineError:
    """What is wrong with entries that make no table of integers."""
    for entry in entries:
        for field, default in (("id", None), ("category_id", None), ("iscrowd", 0), ("area", UNSTATED)):
            value = entry.get(field, default)
            if not isinstance(value, int) or not -(2**62) <= value < 2**62:
                return RefineError(
                    f"{where}: segment {entry.get('id')!r}: {field} is {value!r}, expected an integer; correct "
                    f"segments_info"
                )
    raise AssertionError("these are integers")


def _sum_by_key(keys: np.ndarray, values: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys that occur (rising, below `size`) and the sum of their values, both int64."""
    if size <= MAX_TABLE:
        table = np.bincount(keys, weights=values, minlength=size)  # float64 holds pixel counts exactly
        keys = np.flatnonzero(table)
        return keys, table[keys].astype(np.int64)
    keys, place = np.unique(keys, return_inverse=True)
    return keys, _sums(place, values, len(keys))


def _sums(places: np.ndarray, values: np.ndarray, size: int) -> np.ndarray:
    return np.bincount(places, weights=values, minlength=size).astype(np.int64)
