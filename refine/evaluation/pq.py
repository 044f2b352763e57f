"""Panoptic quality, as panopticapi defines it (paper, equation 8; SPEC §10)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from refine.errors import RefineError
from refine.evaluation.matching import Matches, SegmentTable, match
from refine.evaluation.report import ClassPQ, ImagePQ, PQReport
from refine.evaluation.runs import Runs, joint_runs
from refine.structures import Categories

if TYPE_CHECKING:  # files are measured without torch, whose import takes seconds
    from torch import Tensor

    from refine.structures import Segment

TP, FP, FN, IOU_HIGH, IOU_LOW = range(5)
"""Rows of the state."""

UNITS, LOW_UNITS = 2**53, 2**27
"""Float64 in (1/2, 1], where the IoU of every match lies, are multiples of 2^-53: as integers of two parts
their sums are exact, do not depend on the order of images, and cannot overflow below 2^36 matches."""


class PanopticQuality:
    """Sums of IoU and counts of matches per class; images can come in any order and be summed apart.

    Rules of matching: `refine.evaluation.matching.match`.

    Args:
        categories: of the ground truth.

    Attributes:
        images: PQ of each image added, in order.
    """

    def __init__(self, categories: Categories) -> None:
        self.categories = categories
        self.images: list[ImagePQ] = []
        self._index = {category.id: n for n, category in enumerate(categories)}
        self._state = np.zeros((5, len(categories)), np.int64)

    def update(
        self,
        gt_ids: np.ndarray | Tensor | Runs,
        gt_segments: Sequence[Mapping[str, Any] | Segment],
        pred_ids: np.ndarray | Tensor | Runs,
        pred_segments: Sequence[Mapping[str, Any] | Segment],
        *,
        image_id: int | str = 0,
        file_name: str = "",
        sources: tuple[str, str] | None = None,
    ) -> ImagePQ:
        """Add one image.

        Args:
            gt_ids, pred_ids: [H, W] integers, segment id of each pixel, 0 = void; or their runs.
            gt_segments, pred_segments: entries of `segments_info`, or `Segment`s; `area` is checked
                against the pixels where it is given.
            image_id, file_name: for messages and the list of worst images.
            sources: what messages about the ground truth and the prediction open with, such as their files.

        Returns:
            The image's own PQ (mean over the classes that it shows).

        Raises:
            RefineError: sizes differ; ids of pixels and segments differ; a category is unknown; an id
                is used twice; a stated area is wrong.
        """
        name = f"{file_name or 'image'} (image {image_id}): "
        gt_where, pred_where = sources or (name + "ground truth", name + "prediction")
        gt_map, pred_map = _array(gt_ids), _array(pred_ids)
        if gt_map.shape != pred_map.shape:
            (height, width), (right_height, right_width) = pred_map.shape, gt_map.shape
            raise RefineError(
                f"{pred_where}: has {width} × {height} pixels, the ground truth {right_width} × {right_height}; "
                f"predict at the image's own size"
            )
        gt = SegmentTable.from_segments(gt_segments, self._index, gt_where)
        pred = SegmentTable.from_segments(pred_segments, self._index, pred_where)
        return self._add(match(gt, pred, _pieces(gt_map, pred_map), gt_where, pred_where), image_id, file_name)

    def _add(self, matches: Matches, image_id: int | str, file_name: str) -> ImagePQ:
        high, low = np.divmod(matches.iou * UNITS, LOW_UNITS)
        classes = self._state.shape[1]
        rows = ((TP, matches.labels), (FP, matches.false), (FN, matches.missed), (IOU_HIGH, matches.labels))
        places = np.concatenate([row * classes + labels for row, labels in (*rows, (IOU_LOW, matches.labels))])
        ones = np.ones(len(places) - len(high) - len(low))
        sums = np.bincount(places, np.concatenate([ones, high, low]), 5 * classes).reshape(5, classes)
        self._state += sums.astype(np.int64)
        weight = sums[TP] + 0.5 * (sums[FP] + sums[FN])
        shown = weight > 0
        iou = (sums[IOU_HIGH] * LOW_UNITS + sums[IOU_LOW]) / UNITS
        pq = float((iou[shown] / weight[shown]).mean()) if shown.any() else 1.0
        counts = (len(matches.labels), len(matches.false), len(matches.missed))
        self.images.append(ImagePQ(image_id, file_name, pq, *counts))
        return self.images[-1]

    def merge(self, other: PanopticQuality) -> None:
        """Add what another process or shard has counted; the order of merging does not matter.

        Raises:
            ValueError: the categories differ.
        """
        if other.categories != self.categories:
            raise ValueError("PanopticQuality.merge: the categories differ")
        self._state += other._state
        self.images += other.images

    def state(self) -> np.ndarray:
        """[5, classes] int64, all that is counted but the list of images: sums of states (by all-reduce,
        say) are the states of unions, bit for bit."""
        return self._state.copy()

    @classmethod
    def from_state(
        cls, categories: Categories, state: np.ndarray, images: Iterable[ImagePQ] = ()
    ) -> PanopticQuality:
        """Rebuild from a (summed) state.

        Raises:
            ValueError: the state is not of these categories.
        """
        quality = cls(categories)
        if state.shape != quality._state.shape or state.dtype != np.int64:
            raise ValueError(
                f"PanopticQuality: expected int64 {quality._state.shape}, got {state.dtype} {state.shape}"
            )
        quality._state += state
        quality.images += images
        return quality

    def compute(self) -> PQReport:
        """PQ, SQ and RQ of all, things, stuff and each class."""
        classes = []
        for category, (tp, fp, fn, high, low) in zip(self.categories, self._state.T.tolist(), strict=True):
            iou = (high * LOW_UNITS + low) / UNITS  # of Python's integers, rounded once
            weight = tp + 0.5 * fp + 0.5 * fn
            classes.append(
                ClassPQ(
                    category=category,
                    pq=iou / weight if weight else 0.0,
                    sq=iou / tp if tp else 0.0,
                    rq=tp / weight if weight else 0.0,
                    iou=iou,
                    tp=tp,
                    fp=fp,
                    fn=fn,
                )
            )
        return PQReport(classes, list(self.images))


def _array(ids: np.ndarray | Tensor | Runs) -> np.ndarray | Runs:
    ids = ids if isinstance(ids, (np.ndarray, Runs)) else ids.cpu().numpy()
    if len(ids.shape) != 2 or 0 in ids.shape:
        raise ValueError(f"PanopticQuality: expected a map [H, W] with pixels, got {tuple(ids.shape)}")
    return ids


def _pieces(gt: np.ndarray | Runs, pred: np.ndarray | Runs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if isinstance(gt, np.ndarray) and isinstance(pred, np.ndarray):
        return joint_runs(gt, pred)
    from refine.evaluation.overlaps import overlaps  # numba takes a second to start; maps do without

    return overlaps(*(Runs.from_map(side) if isinstance(side, np.ndarray) else side for side in (gt, pred)))
