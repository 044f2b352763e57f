"""What `evaluate` measures: each measure is updated image by image, merged over processes, and computed.

evaluation = evaluate(predictor, dataset, measures=[Quality(), BoxAndMaskAP()])
evaluation[Quality].report.pq
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
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
from refine.ops.masks import paste_masks
from refine.ops.order import match_masks, ordered_pairs
from refine.structures import VOID, Categories, PanopticResult, Prediction, Targets


@dataclass(frozen=True)
class Example:
    """One image of a data set and what the network predicts of it, before fusion.

    Attributes:
        number: place in the data set, from 0.
        image: Tensor[3, H, W] uint8 RGB.
        truth: ground truth.
        image_id, file_name: names in the data set.
        categories: categories of the data set.
        prediction: output of the network.
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
        """Boxes, masks and labels of the ground truth."""
        return self.truth.targets(self.categories.num_things, self.image_id, self.file_name)

    @cached_property
    def segments_info(self) -> list[dict[str, Any]]:
        """COCO's `segments_info` of the ground truth."""
        return segments_info(self.truth, self.categories)


@dataclass(frozen=True)
class Fused:
    """What one rule of fusion makes of an example: its result, by these thresholds."""

    result: PanopticResult
    config: FusionConfig


class Measure(ABC):
    """Something that is measured on a data set. `evaluate` copies and resets a measure before it uses it.

    Attributes:
        before_fusion: does not depend on the rule of fusion, so that all rules share it.
        all_detections: looks at detections of any score, also below `score_threshold`.
    """

    before_fusion: ClassVar[bool] = False
    all_detections: ClassVar[bool] = False

    @abstractmethod
    def reset(self, categories: Categories) -> None:
        """Forget all images; the next ones are of a data set with these categories."""

    @abstractmethod
    def update(self, example: Example, fused: Fused) -> None:
        """Add one image."""

    @abstractmethod
    def merge(self, other: Self) -> None:
        """Add the images of another process."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Main numbers by name, 0-1, for logs and tables; NaN where there was nothing to measure."""


class Quality(Measure):
    """PQ, SQ and RQ.

    Attributes:
        quality: sums over the images.
        counts: what each image adds to `quality.state()`, [5, classes] int64 each.
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
        """PQ, SQ and RQ of all classes, things, stuff, each class and each image."""
        return self.quality.compute()

    def compute(self) -> dict[str, float]:
        """PQ, SQ and RQ, alone and with _things and _stuff."""
        report, numbers = self.report, dict[str, float]()
        for suffix, isthing in (("", None), ("_things", True), ("_stuff", False)):
            group = report.group(isthing)
            numbers |= {f"{name.upper()}{suffix}": group[name] for name in ("pq", "sq", "rq")}
        return numbers


@dataclass
class BoxAndMaskAP(Measure):
    """COCO's box and mask AP of all detections before fusion.

    Args:
        max_detections: most detections of an image that count; 100 makes it COCO's own AP, None counts all that
            the model gives.

    Attributes:
        precision: detections and ground truth so far.
    """

    max_detections: int | None = None
    precision: AveragePrecision = field(init=False)
    before_fusion: ClassVar[bool] = True
    all_detections: ClassVar[bool] = True

    def reset(self, categories: Categories) -> None:
        self.precision = AveragePrecision(categories, self.max_detections)

    def update(self, example: Example, fused: Fused) -> None:
        instances = example.prediction.instances
        assert instances.roi_masks is not None, "the network gives masks"
        masks = paste_masks(instances.roi_masks, instances.boxes, instances.image_size)
        self.precision.update(example.targets, replace(instances, masks=masks).to("cpu"))

    def merge(self, other: Self) -> None:
        self.precision.merge(other.precision)

    @cached_property
    def table(self) -> dict[str, dict[str, float]]:
        """`bbox` and `segm` with COCO's twelve numbers each."""
        return self.precision.compute()

    def compute(self) -> dict[str, float]:
        """AP_box and AP_mask."""
        return {"AP_box": self.table["bbox"]["AP"], "AP_mask": self.table["segm"]["AP"]}


class OrderAccuracy(Measure):
    """Share of the overlapping pairs of detections whose order fusion got right.

    Of a pair, the instance in front is the one that got more of the pixels that both claim; a pair of which
    neither got any is wrong. Pairs are those whose order the ground truth decides (see
    `refine.ops.order.ordered_pairs`), among the detections that fusion used.

    Attributes:
        pairs: (right, all) of each image.
    """

    pairs: list[tuple[int, int]]

    def reset(self, categories: Categories) -> None:
        self.pairs = []

    def update(self, example: Example, fused: Fused) -> None:
        instances, result = example.prediction.instances, fused.result
        targets = example.targets.to(instances.boxes.device)
        places = torch.nonzero(instances.scores >= fused.config.score_threshold).squeeze(1)
        chosen = instances[places]
        assert chosen.roi_masks is not None, "the network gives masks"
        masks = paste_masks(chosen.roi_masks.float(), chosen.boxes, targets.size).flatten(1)
        matched = match_masks(masks, chosen.labels, targets.masks.flatten(1), targets.labels, targets.iscrowd)
        labelled = targets.sem_seg.flatten() != VOID
        pairs = ordered_pairs(masks, matched, targets.owner.flatten(), labelled, fused.config.pair_overlap)
        if not len(pairs):
            self.pairs.append((0, 0))
            return
        shown = {segment.instance: segment.id for segment in result.segments if segment.isthing}
        ids = torch.tensor([shown.get(n, -1) for n in places.tolist()], device=masks.device)
        owned = (masks & (result.segment_ids.flatten() == ids[:, None])).float() @ masks.float().T
        front, back = pairs.unbind(1)
        self.pairs.append((int((owned[front, back] > owned[back, front]).sum()), len(pairs)))

    def merge(self, other: Self) -> None:
        self.pairs += other.pairs

    @property
    def totals(self) -> tuple[int, int]:
        """Pairs in the right order, and all."""
        return sum(right for right, _ in self.pairs), sum(decided for _, decided in self.pairs)

    def compute(self) -> dict[str, float]:
        """pairs_right."""
        right, decided = self.totals
        return {"pairs_right": right / decided if decided else math.nan}


def segments_info(truth: SegmentMap, categories: Categories) -> list[dict[str, Any]]:
    """COCO's `segments_info` of a ground truth: segment k has id k + 1, void 0."""
    shown = torch.unique(truth.index[truth.index >= 0]).tolist()
    labels, crowd = truth.labels.tolist(), truth.iscrowd.tolist()
    return [{"id": k + 1, "category_id": categories[labels[k]].id, "iscrowd": int(crowd[k])} for k in shown]
