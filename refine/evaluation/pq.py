"""Panoptic quality, as panopticapi defines it (paper, equation 8; SPEC §10)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refine.errors import RefineError
from refine.evaluation.report import ClassPQ, ImagePQ, PQReport
from refine.structures import Categories, Segment

VOID_ID = 0
"""Id of pixels that belong to no segment."""


@dataclass(frozen=True)
class _Side:
    """Segments of one map, by rising id."""

    ids: np.ndarray  # S int64
    labels: np.ndarray  # S int64, contiguous
    iscrowd: np.ndarray  # S bool
    areas: np.ndarray  # S int64, stated; -1 where not stated


class PanopticQuality:
    """Sums of IoU and counts of matches per class; images can come in any order and be summed apart.

    Rules: a predicted and a true segment of one class match if their IoU exceeds 1/2, where the union
    leaves out predicted pixels on void; crowd segments match nothing; an unmatched prediction that lies
    by more than half on void or on crowds of its class is not counted.

    Args:
        categories: of the ground truth.
    """

    def __init__(self, categories: Categories) -> None:
        self.categories = categories
        self.iou = np.zeros(len(categories))
        self.tp = np.zeros(len(categories), np.int64)
        self.fp = np.zeros(len(categories), np.int64)
        self.fn = np.zeros(len(categories), np.int64)
        self.images: list[ImagePQ] = []

    def update(
        self,
        gt_ids: np.ndarray,
        gt_segments: Sequence[Mapping[str, Any] | Segment],
        pred_ids: np.ndarray,
        pred_segments: Sequence[Mapping[str, Any] | Segment],
        *,
        image_id: int | str = 0,
        file_name: str = "",
    ) -> ImagePQ:
        """Add one image.

        Args:
            gt_ids, pred_ids: [H, W] integers, segment id of each pixel, 0 = void.
            gt_segments, pred_segments: entries of `segments_info`, or `Segment`s; `area` is checked
                against the pixels where it is given.
            image_id, file_name: for messages and the list of worst images.

        Returns:
            The image's own PQ (mean over the classes that it shows).

        Raises:
            RefineError: sizes differ; ids of pixels and segments differ; a category is unknown; an id
                is used twice; a stated area is wrong.
        """
        where = f"{file_name or 'image'} (image {image_id})"
        if gt_ids.shape != pred_ids.shape:
            raise RefineError(
                f"{where}: the prediction has {pred_ids.shape[1]} × {pred_ids.shape[0]} pixels, the ground truth "
                f"{gt_ids.shape[1]} × {gt_ids.shape[0]}; predict at the image's own size"
            )
        gt = self._side(gt_segments, f"{where}: ground truth")
        pred = self._side(pred_segments, f"{where}: prediction")
        # Runs of pixels with equal ids on both sides: hundreds where there are a hundred thousand pixels.
        g, p = gt_ids.ravel(), pred_ids.ravel()
        change = np.flatnonzero((g[1:] != g[:-1]) | (p[1:] != p[:-1])) + 1
        starts = np.concatenate([[0], change]) if g.size else change
        lengths = np.diff(np.append(starts, g.size))
        rows = _places(gt.ids, g[starts], f"{where}: ground truth")
        columns = _places(pred.ids, p[starts], f"{where}: prediction")
        width = len(pred.ids) + 1
        overlap = np.bincount(rows * width + columns, weights=lengths, minlength=(len(gt.ids) + 1) * width)
        overlap = overlap.astype(np.int64).reshape(-1, width)  # row and column 0 are void
        _check_areas(gt, overlap.sum(1)[1:], f"{where}: ground truth")
        _check_areas(pred, overlap.sum(0)[1:], f"{where}: prediction")
        return self._count(gt, pred, overlap, image_id, file_name)

    def _side(self, segments: Sequence[Mapping[str, Any] | Segment], where: str) -> _Side:
        entries = [s.to_json() if isinstance(s, Segment) else s for s in segments]
        for entry in entries:
            if entry["category_id"] not in self.categories:
                raise RefineError(
                    f"{where}: segment {entry['id']}: unknown category_id {entry['category_id']}; use an id of "
                    f"the ground truth's `categories`"
                )
        ids = np.array([entry["id"] for entry in entries], np.int64)
        order = np.argsort(ids, kind="stable")
        ids = ids[order]
        twice = np.flatnonzero(ids[1:] == ids[:-1])
        if twice.size:
            raise RefineError(
                f"{where}: segment id {ids[twice[0]]} is used twice; make ids unique in an image"
            )
        if ids.size and ids[0] == VOID_ID:
            raise RefineError(f"{where}: a segment has id 0, which means void; number segments from 1")
        return _Side(
            ids,
            np.array([self.categories.index(entry["category_id"]) for entry in entries], np.int64)[order],
            np.array([bool(entry.get("iscrowd", 0)) for entry in entries], bool)[order],
            np.array([entry.get("area", -1) for entry in entries], np.int64)[order],
        )

    def _count(
        self, gt: _Side, pred: _Side, overlap: np.ndarray, image_id: int | str, file_name: str
    ) -> ImagePQ:
        classes = len(self.categories)
        inside = overlap[1:, 1:]
        gt_area, pred_area = overlap[1:].sum(1), overlap[:, 1:].sum(0)
        on_void = overlap[0, 1:]
        union = gt_area[:, None] + (pred_area - on_void)[None] - inside
        same = gt.labels[:, None] == pred.labels[None]
        row, column = np.nonzero(same & ~gt.iscrowd[:, None] & (2 * inside > union))
        matched_iou = inside[row, column] / union[row, column]
        iou = np.bincount(gt.labels[row], weights=matched_iou, minlength=classes)
        tp = np.bincount(gt.labels[row], minlength=classes)
        unmatched_gt = ~gt.iscrowd
        unmatched_gt[row] = False
        fn = np.bincount(gt.labels[unmatched_gt], minlength=classes)
        # Of several crowds of one class in an image, panopticapi forgives pixels on the last one alone;
        # COCO has at most one.
        ignored = on_void + self._on_crowd(gt, pred, inside)
        unmatched = np.ones(len(pred.ids), bool)
        unmatched[column] = False
        fp = np.bincount(pred.labels[unmatched & (2 * ignored <= pred_area)], minlength=classes)
        self.iou += iou
        self.tp += tp
        self.fp += fp
        self.fn += fn
        denominator = tp + 0.5 * fp + 0.5 * fn
        shown = denominator > 0
        pq = float((iou[shown] / denominator[shown]).mean()) if shown.any() else 1.0
        image = ImagePQ(image_id, file_name, pq, int(tp.sum()), int(fp.sum()), int(fn.sum()))
        self.images.append(image)
        return image

    def _on_crowd(self, gt: _Side, pred: _Side, inside: np.ndarray) -> np.ndarray:
        """Pixels of each prediction on the crowd of its class: [P] int64."""
        crowd_of = np.full(len(self.categories), -1, np.int64)
        crowds = np.flatnonzero(gt.iscrowd)
        crowd_of[gt.labels[crowds]] = crowds
        own = crowd_of[pred.labels]
        if not len(crowds):
            return np.zeros(len(pred.ids), np.int64)
        return np.where(own >= 0, inside[own, np.arange(len(pred.ids))], 0)

    def merge(self, other: PanopticQuality) -> None:
        """Add what another process or shard has counted."""
        if other.categories != self.categories:
            raise ValueError("PanopticQuality.merge: the categories differ")
        self.iou += other.iou
        self.tp += other.tp
        self.fp += other.fp
        self.fn += other.fn
        self.images += other.images

    def state(self) -> np.ndarray:
        """[4, classes] float64 (IoU, TP, FP, FN): the sum of states is the state of the union."""
        return np.stack([self.iou, self.tp, self.fp, self.fn])

    def compute(self) -> PQReport:
        """PQ, SQ and RQ of all, things, stuff and each class."""
        classes = []
        for n, category in enumerate(self.categories):
            denominator = self.tp[n] + 0.5 * self.fp[n] + 0.5 * self.fn[n]
            classes.append(
                ClassPQ(
                    category=category,
                    pq=float(self.iou[n] / denominator) if denominator else 0.0,
                    sq=float(self.iou[n] / self.tp[n]) if self.tp[n] else 0.0,
                    rq=float(self.tp[n] / denominator) if denominator else 0.0,
                    iou=float(self.iou[n]),
                    tp=int(self.tp[n]),
                    fp=int(self.fp[n]),
                    fn=int(self.fn[n]),
                )
            )
        return PQReport(classes, list(self.images))


def _places(ids: np.ndarray, values: np.ndarray, where: str) -> np.ndarray:
    """Row of each value: 0 for void, k + 1 for the k-th of the sorted `ids`."""
    place = np.searchsorted(ids, values)
    known = np.append(ids, -1)[place] == values
    unknown = values[~known & (values != VOID_ID)]
    if unknown.size:
        raise RefineError(
            f"{where}: the PNG has id {unknown[0]}, which segments_info lacks; add it or paint 0"
        )
    return np.where(known, place + 1, 0)


def _check_areas(side: _Side, areas: np.ndarray, where: str) -> None:
    if (areas == 0).any():
        first = side.ids[np.flatnonzero(areas == 0)[0]]
        raise RefineError(f"{where}: segment {first} has no pixel in the PNG; drop it from segments_info")
    wrong = np.flatnonzero((side.areas >= 0) & (side.areas != areas))
    if wrong.size:
        n = wrong[0]
        raise RefineError(
            f"{where}: segment {side.ids[n]}: area is {side.areas[n]} in the JSON but {areas[n]} pixels in the "
            f"PNG; correct the JSON"
        )
