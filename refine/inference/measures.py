"""Measures for `evaluate`, which updates them per image, merges them over processes, and computes them.

evaluation = evaluate(predictor, dataset, measures=[Quality(), BoxAndMaskAP()])
evaluation[Quality].report.pq
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from refine.data.segments import SegmentMap
from refine.evaluation.average_precision import AveragePrecision
from refine.evaluation.pq import PanopticQuality
from refine.evaluation.report import PQReport
from refine.fusion import FusionConfig
from refine.inference.limits import Limits
from refine.modeling.occlusion import detection_pairs
from refine.ops.order import common_pixels
from refine.structures import Categories, PanopticResult, Prediction, Targets


@dataclass(frozen=True)
class Example:
    """One image of a data set with its ground truth and the network's prediction before fusion.

    Attributes:
        number: index in the data set, from 0.
        image: Tensor[3, H, W] uint8 RGB.
        truth: ground-truth segments.
        image_id, file_name: identifiers of the image in the data set.
        categories: categories of the data set.
        prediction: instances and semantic map that the network predicted.
    """

    number: int
    image: Tensor
    truth: SegmentMap
    image_id: int | str
    file_name: str
    categories: Categories
    prediction: Prediction

    @cached_property
    def targets(self) -> Targets:
        """Ground-truth boxes, masks and labels."""
        return self.truth.targets(self.categories.num_things, self.image_id, self.file_name)

    @cached_property
    def segments_info(self) -> list[dict[str, Any]]:
        """Ground truth in the form of COCO's `segments_info`."""
        return segments_info(self.truth, self.categories)


@dataclass(frozen=True)
class Fused:
    """Result of one fusion rule for an example, and the thresholds used."""

    result: PanopticResult
    config: FusionConfig


class Measure(ABC):
    """Base class of measures. `evaluate` works on reset copies of the measures that it is given.

    Attributes:
        before_fusion: whether the measure is independent of the fusion rule, so that all rules share it.
        all_detections: whether the measure uses detections with scores below `score_threshold`.
    """

    before_fusion: ClassVar[bool] = False
    all_detections: ClassVar[bool] = False

    @abstractmethod
    def reset(self, categories: Categories) -> None:
        """Remove all images, and prepare for a data set with these categories."""

    @abstractmethod
    def update(self, example: Example, fused: Fused) -> None:
        """Add one image."""

    @abstractmethod
    def merge(self, other: Self) -> None:
        """Add the images of another measure of the same class."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Return the main numbers by name, 0-1; NaN if there was nothing to measure."""


class Missable(Measure):
    """Images in which objects may be missing because of the model's limits.

    Args:
        limits: record without images, from `Predictor.limits`.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits

    def reset(self, categories: Categories) -> None:
        self.limits = Limits(self.limits.most, self.limits.resizable)

    def update(self, example: Example, fused: Fused) -> None:
        self.limits.add(example.file_name, example.prediction, fused.config.score_threshold)

    def merge(self, other: Self) -> None:
        self.limits.merge(other.limits)

    def compute(self) -> dict[str, float]:
        """Return no numbers."""
        return {}


class Quality(Measure):
    """PQ, SQ and RQ.

    Attributes:
        quality: PQ accumulated over the images.
        counts: contribution of each image to `quality.state()`, [5, classes] int64.
    """

    quality: PanopticQuality
    counts: list[np.ndarray]

    def reset(self, categories: Categories) -> None:
        self.quality, self.counts = PanopticQuality(categories), []

    def update(self, example: Example, fused: Fused) -> None:
        before = self.quality.state()
        self.quality.update(
            example.truth.index.numpy() + 1,
            example.segments_info,
            fused.result.segment_ids.cpu().numpy(),
            fused.result.segments,
            image_id=example.image_id,
            file_name=example.file_name,
        )
        self.counts.append(self.quality.state() - before)

    def merge(self, other: Self) -> None:
        self.quality.merge(other.quality)
        self.counts += other.counts

    @property
    def report(self) -> PQReport:
        """PQ, SQ and RQ over all classes, things and stuff, and per class and image."""
        return self.quality.compute()

    def compute(self) -> dict[str, float]:
        """Return PQ, SQ and RQ over all classes, and with the suffixes _things and _stuff."""
        report, numbers = self.report, dict[str, float]()
        for suffix, isthing in (("", None), ("_things", True), ("_stuff", False)):
            group = report.group(isthing)
            numbers |= {f"{name.upper()}{suffix}": group[name] for name in ("pq", "sq", "rq")}
        return numbers


@dataclass
class BoxAndMaskAP(Measure):
    """COCO box and mask AP of all detections before fusion.

    Args:
        max_detections: maximum number of detections per image; 100 gives COCO's AP, None uses all detections.

    Attributes:
        precision: accumulated detections and ground truth.
    """

    max_detections: int | None = None
    precision: AveragePrecision = field(init=False, repr=False)
    _table: dict[str, dict[str, float]] | None = field(default=None, init=False, repr=False)
    before_fusion: ClassVar[bool] = True
    all_detections: ClassVar[bool] = True

    def reset(self, categories: Categories) -> None:
        self.precision, self._table = AveragePrecision(categories, self.max_detections), None

    def update(self, example: Example, fused: Fused) -> None:
        self._table = None
        instances = example.prediction.instances
        masks = instances.mask_runs().dense()
        self.precision.update(example.targets, replace(instances, masks=masks).to("cpu"))

    def merge(self, other: Self) -> None:
        self.precision.merge(other.precision)
        self._table = None

    @property
    def table(self) -> dict[str, dict[str, float]]:
        """COCO's twelve numbers for "bbox" and for "segm"; -1 where one is undefined."""
        if self._table is None:
            self._table = self.precision.compute()
        return self._table

    def compute(self) -> dict[str, float]:
        """Return AP_box and AP_mask."""
        table = self.table
        numbers = {"AP_box": table["bbox"]["AP"], "AP_mask": table["segm"]["AP"]}
        return {name: value if value >= 0 else math.nan for name, value in numbers.items()}


class OrderAccuracy(Measure):
    """Fractions of overlapping pairs of detections that fusion puts in the right order.

    The instance in front is the one that owns more of the pixels that both masks cover; if neither owns any, the
    pair counts as wrong. Evaluated are pairs of detections used by fusion whose order the ground truth determines:
    two true ones, and a true one in front of a false one (see `refine.modeling.occlusion.detection_pairs`).

    Attributes:
        pairs: (number in the right order, number of pairs) of each image, for pairs of two true detections.
        false_pairs: the same for pairs of a true and a false detection.
    """

    pairs: list[tuple[int, int]]
    false_pairs: list[tuple[int, int]]

    def reset(self, categories: Categories) -> None:
        self.pairs, self.false_pairs = [], []

    def update(self, example: Example, fused: Fused) -> None:
        instances, result = example.prediction.instances, fused.result
        targets = example.targets.to(instances.boxes.device)
        kept = torch.nonzero(instances.scores >= fused.config.score_threshold).squeeze(1)
        used = instances[kept]
        masks = used.mask_runs().dense().flatten(1)
        both = detection_pairs(masks, used.labels, targets, fused.config.pair_overlap)
        shown = {segment.instance: segment.id for segment in result.segments if segment.isthing}
        ids = torch.tensor([shown.get(n, -1) for n in kept.tolist()], device=masks.device)
        owned = common_pixels(masks & (result.segment_ids.flatten() == ids[:, None]), masks)
        for pairs, counted in zip(both, (self.pairs, self.false_pairs), strict=True):
            front, back = pairs.unbind(1)
            counted.append((int((owned[front, back] > owned[back, front]).sum()), len(pairs)))

    def merge(self, other: Self) -> None:
        self.pairs += other.pairs
        self.false_pairs += other.false_pairs

    @property
    def totals(self) -> tuple[int, int]:
        """Number of pairs of two true detections in the right order, and number of such pairs."""
        return _total(self.pairs)

    @property
    def false_totals(self) -> tuple[int, int]:
        """Number of pairs of a true and a false detection in the right order, and number of such pairs."""
        return _total(self.false_pairs)

    def compute(self) -> dict[str, float]:
        """Return the fractions as pairs_right and false_pairs_right."""
        totals = {"pairs_right": self.totals, "false_pairs_right": self.false_totals}
        return {name: right / decided if decided else math.nan for name, (right, decided) in totals.items()}


def _total(pairs: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return sum(right for right, _ in pairs), sum(decided for _, decided in pairs)


def segments_info(truth: SegmentMap, categories: Categories) -> list[dict[str, Any]]:
    """Return ground truth in the form of COCO's `segments_info`: segment k has id k + 1, void 0."""
    shown = torch.unique(truth.index[truth.index >= 0]).tolist()
    labels, crowd = truth.labels.tolist(), truth.iscrowd.tolist()
    return [{"id": k + 1, "category_id": categories[labels[k]].id, "iscrowd": int(crowd[k])} for k in shown]
