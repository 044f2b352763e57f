"""Segments of one image, matched by panopticapi's rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refine.errors import RefineError
from refine.structures import Segment

VOID_ID = 0
"""Id of pixels that belong to no segment."""

MAX_TABLE = 2**22
"""Pairs of segments up to which overlaps are counted in a full table (32 MiB)."""


@dataclass(frozen=True)
class SegmentTable:
    """Segments of one map, by rising id; row 0 is void.

    Attributes:
        ids: [1 + S] int64.
        labels: [1 + S] int64, contiguous class; -1 in row 0.
        iscrowd: [1 + S] bool.
        areas: [1 + S] int64, as stated; -1 where not stated.
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
        rows = []
        for segment in segments:
            entry = vars(segment) if isinstance(segment, Segment) else segment
            try:
                row = (entry["id"], entry["category_id"], entry.get("iscrowd", 0), entry.get("area", -1))
            except KeyError as error:
                raise RefineError(f"{where}: a segment has no {error}; give it in segments_info") from error
            if not all(isinstance(value, int) for value in row):
                raise RefineError(f"{where}: segment {row[0]!r}: a field is no integer ({entry}); correct it")
            rows.append(row)
        for number, category_id, _, _ in rows:
            if category_id not in index:
                raise RefineError(
                    f"{where}: segment {number}: unknown category_id {category_id}; use an id of the ground "
                    f"truth's `categories`"
                )
            if not 0 < number < 2**24:
                raise RefineError(
                    f"{where}: a segment has id {number}; number segments from 1 to 2^24 - 1 (0 is void)"
                )
        crowds = {index[category_id]: number for number, category_id, iscrowd, _ in rows if iscrowd}
        rows.sort()
        table = np.array([(VOID_ID, 0, 0, -1), *rows], np.int64)
        ids = table[:, 0]
        twice = ids[1:][ids[1:] == ids[:-1]]
        if twice.size:
            raise RefineError(f"{where}: segment id {twice[0]} is used twice; make ids unique in an image")
        labels = np.array([-1, *(index[row[1]] for row in rows)], np.int64)
        return cls(ids, labels, table[:, 2].astype(bool), table[:, 3], crowds)

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
        right = (areas == self.areas) | (self.areas < 0)
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
