"""Panoptic quality, as panopticapi defines it (paper, equation 8)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from refine.errors import RefineError
from refine.evaluation.matching import FN, LOW_UNITS, UNITS, Side, match
from refine.evaluation.report import ClassPQ, ImagePQ, PQReport
from refine.formats.runs import Runs
from refine.structures import Categories

if TYPE_CHECKING:  # file evaluation must not import torch, which takes seconds
    from torch import Tensor

    from refine.structures import Segment


class PanopticQuality:
    """Panoptic quality, accumulated image by image, in any order and over several processes.

    See `refine.evaluation.matching.match` for the matching rules.

    Args:
        categories: categories of the ground truth.

    Attributes:
        images: PQ of each image, in the order of adding.

    Examples:
        >>> quality = PanopticQuality(refine.Categories([refine.Category(3, "cup", True)]))
        >>> truth, prediction = np.array([[1, 1, 1, 1, 0]]), np.array([[8, 8, 8, 0, 8]])
        >>> image = quality.update(truth, [{"id": 1, "category_id": 3}], prediction, [{"id": 8, "category_id": 3}])
        >>> quality.compute().pq  # 3 common pixels of 4; the predicted pixel on void does not count
        0.75
    """

    def __init__(self, categories: Categories) -> None:
        self.categories = categories
        self.images: list[ImagePQ] = []
        self._index = {category.id: n for n, category in enumerate(categories)}
        self._state = np.zeros((5, len(categories)), np.int64)  # counts as returned by `match`

    def update(
        self,
        gt_ids: np.ndarray | Tensor | Runs,
        gt_segments: Sequence[Mapping[str, Any] | Segment],
        pred_ids: np.ndarray | Tensor | Runs,
        pred_segments: Sequence[Mapping[str, Any] | Segment],
        *,
        image_id: int | str = 0,
        file_name: str = "",
    ) -> ImagePQ:
        """Add one image.

        Args:
            gt_ids, pred_ids: [H, W] integer, segment id of each pixel, 0 = void; or the same as runs.
            gt_segments, pred_segments: entries of `segments_info`, or `Segment`s; a stated `area` is checked
                against the pixels.
            image_id, file_name: id and name of the image, for messages and the list of worst images.

        Returns:
            PQ of the image (mean over the classes that occur in it).

        Raises:
            RefineError: sizes differ, ids of pixels and segments differ, a category is unknown, an id
                is used twice, or a stated area is wrong.
            ValueError: a map is not two-dimensional or is empty.
        """
        name = f"{file_name or 'image'} (image {image_id}): "
        gt = Side.checked(_runs(gt_ids), gt_segments, self._index, name + "ground truth")
        pred = Side.checked(_runs(pred_ids), pred_segments, self._index, name + "prediction")
        return self.add(gt, pred, image_id, file_name)

    def add(self, gt: Side, pred: Side, image_id: int | str, file_name: str) -> ImagePQ:
        """Add one image whose segments are already validated; see `update`."""
        if gt.runs.shape != pred.runs.shape:
            (height, width), (right_height, right_width) = pred.runs.shape, gt.runs.shape
            raise RefineError(
                f"{pred.where}: expected {right_width} × {right_height} pixels as in the ground truth, got "
                f"{width} × {height}; predict at the original size of the image"
            )
        counts, pq = match(gt, pred, len(self.categories))
        self._state += counts
        totals = counts[: FN + 1].sum(1).tolist()  # TP, FP and FN
        self.images.append(ImagePQ(image_id, file_name, pq, *totals))
        return self.images[-1]

    def merge(self, other: PanopticQuality) -> None:
        """Add the counts of another process or shard; the order of merging does not matter.

        Raises:
            ValueError: the categories differ.
        """
        if other.categories != self.categories:
            raise ValueError("PanopticQuality.merge: the categories differ")
        self._state += other._state
        self.images += other.images

    def state(self) -> np.ndarray:
        """Return the counts, [5, classes] int64, without the list of images.

        The sum of states, for example by all-reduce, is exactly the state of all images together.
        """
        return self._state.copy()

    @classmethod
    def from_state(
        cls, categories: Categories, state: np.ndarray, images: Iterable[ImagePQ] = ()
    ) -> PanopticQuality:
        """Create the metric from a (summed) state.

        Raises:
            ValueError: the state does not fit the categories.
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
        """Return PQ, SQ and RQ of all classes, things, stuff and each class."""
        classes = []
        for category, (tp, fp, fn, high, low) in zip(self.categories, self._state.T.tolist(), strict=True):
            iou = (high * LOW_UNITS + low) / UNITS  # Python integers: rounded once
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


def _runs(ids: np.ndarray | Tensor | Runs) -> Runs:
    if isinstance(ids, Runs):
        return ids
    array = ids if isinstance(ids, np.ndarray) else ids.cpu().numpy()
    if array.ndim != 2 or not array.size:
        raise ValueError(f"PanopticQuality: expected a non-empty map [H, W], got shape {array.shape}")
    return Runs.from_map(array)
