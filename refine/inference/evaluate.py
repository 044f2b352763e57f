"""Measuring a model on a data set, image by image, on one process or many."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refine.data.loader import PanopticDataset
from refine.data.segments import SegmentMap
from refine.data.workers import read_in_workers
from refine.drawing.overlay import difference, overlay, write_picture
from refine.evaluation.average_precision import AveragePrecision
from refine.evaluation.interval import Counts
from refine.evaluation.pq import PanopticQuality
from refine.evaluation.report import PQReport
from refine.fusion import FusionConfig, Method
from refine.inference.predictor import Predictor
from refine.modeling.occlusion import contested_pairs
from refine.ops.masks import paste_masks
from refine.runtime import Processes
from refine.structures import Categories, Instances, PanopticResult, Segment, Targets

ALONE = Processes(0, 1, torch.device("cpu"))


@dataclass
class Evaluation:
    """What was measured.

    Attributes:
        report: PQ, SQ, RQ of all, things, stuff, each class and each image.
        average_precision: `bbox` and `segm` with COCO's twelve numbers each, or None where not asked for.
        pairs: overlapping pairs of detections whose order fusion got right, and all of them whose order the
            ground truth tells (see `contested_pairs`); None where not asked for.
        pictures: by file name, Tensor[3, H, 3 W] uint8: image, ground truth and prediction side by side.
        counts: what each image adds to PQ and to `pairs`.
    """

    report: PQReport
    counts: Counts
    average_precision: dict[str, dict[str, float]] | None = None
    pairs: tuple[int, int] | None = None
    pictures: dict[str, Tensor] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, float]:
        """The main numbers by name, 0-1: PQ, SQ, RQ, the same with _things and _stuff; AP_box, AP_mask and
        pairs_right (a share) if measured."""
        numbers: dict[str, float] = {}
        for suffix, isthing in (("", None), ("_things", True), ("_stuff", False)):
            group = self.report.group(isthing)
            numbers |= {f"{name.upper()}{suffix}": group[name] for name in ("pq", "sq", "rq")}
        if self.average_precision is not None:
            numbers["AP_box"] = self.average_precision["bbox"]["AP"]
            numbers["AP_mask"] = self.average_precision["segm"]["AP"]
        if self.pairs is not None and self.pairs[1]:
            numbers["pairs_right"] = self.pairs[0] / self.pairs[1]
        return {name: float(value) for name, value in numbers.items() if math.isfinite(value)}

    def write(self, path: str | Path, **more: object) -> None:
        """Write PQ of everything, the AP, and further fields as JSON."""
        self.report.write(path, AP=self.average_precision, images=len(self.report.images), **more)


def evaluate(
    predictor: Predictor,
    dataset: PanopticDataset,
    *,
    average_precision: bool = False,
    occlusion_accuracy: bool = False,
    max_images: int | None = None,
    pictures: int = 0,
    workers: int = 0,
    group: Processes = ALONE,
) -> Evaluation:
    """Predict and compare every image, fused by the predictor's own rule.

    Memory grows with the number of images only by AP's run lengths and 40 bytes per image and class.

    Args:
        predictor: with the categories of the data set.
        dataset: ground truth.
        average_precision: measure box and mask AP too, of all detections before fusion.
        occlusion_accuracy: count the overlapping pairs whose order fusion got right.
        max_images: only the first so many.
        pictures: draw the first so many.
        workers: processes that read images.
        group: processes that share the images; each returns the sum.

    Raises:
        RefineError: model and data set have different categories.
    """
    (evaluation,) = evaluate_rules(
        predictor,
        dataset,
        [(predictor.method, predictor.fusion)],
        average_precision=average_precision,
        occlusion_accuracy=occlusion_accuracy,
        max_images=max_images,
        pictures=pictures,
        workers=workers,
        group=group,
    )
    return evaluation


def evaluate_rules(
    predictor: Predictor,
    dataset: PanopticDataset,
    rules: Sequence[tuple[Method, FusionConfig]],
    *,
    average_precision: bool = False,
    occlusion_accuracy: bool = False,
    max_images: int | None = None,
    pictures: int = 0,
    workers: int = 0,
    group: Processes = ALONE,
) -> list[Evaluation]:
    """`evaluate` under several rules of fusion, of the same predictions: the network runs once per image.

    Args:
        rules: method and thresholds; instead of the predictor's own.
        predictor, dataset, average_precision, occlusion_accuracy, max_images, pictures, workers, group: as
            in `evaluate`.

    Returns:
        One for each rule, in their order.

    Raises:
        RefineError: as `evaluate`.
    """
    predictor.categories.check_equal(dataset.categories, "the model", "the data set")
    categories = dataset.categories
    precision = AveragePrecision(categories)
    sums = [_Sums(PanopticQuality(categories)) for _ in rules]
    total = min(max_images or len(dataset), len(dataset))
    used = 0.0 if average_precision else min(config.score_threshold for _, config in rules)
    for index, image, truth in _read(dataset, range(group.rank, total, group.count), workers):
        truth = truth.named(len(categories))
        raw = predictor.predict_raw([image], used)[0]
        image_id, file_name = dataset.name(index)
        targets = None
        if average_precision or occlusion_accuracy:
            targets = truth.targets(categories.num_things, image_id, file_name)
        if average_precision:
            size = raw.instances.image_size
            assert targets is not None
            assert raw.instances.roi_masks is not None, "the network gives masks"
            masks = paste_masks(raw.instances.roi_masks, raw.instances.boxes, size)
            precision.update(targets, replace(raw.instances, masks=masks).to("cpu"))
        for (method, config), part in zip(rules, sums, strict=True):
            result = predictor.fuse(raw, method, config)
            before = part.quality.state()
            part.quality.update(
                truth.index.numpy() + 1,
                segments_info(truth, categories),
                result.segment_ids.cpu().numpy(),
                result.segments,
                image_id=image_id,
                file_name=file_name,
            )
            part.counts.append(part.quality.state() - before)
            if occlusion_accuracy:
                assert targets is not None
                part.pairs.append(count_right(raw.instances, targets.to(predictor.device), result, config))
            if index < pictures:
                part.drawn[file_name] = side_by_side(image, to_result(truth, categories), result)
    measured = None
    if average_precision:
        whole = AveragePrecision(categories)
        for of_one in group.gather(precision):
            whole.merge(of_one)
        measured = whole.compute()
    return [_merge(group.gather(part), categories, measured, occlusion_accuracy) for part in sums]


@dataclass
class _Sums:
    """What one process has counted under one rule, over all images and of each."""

    quality: PanopticQuality
    counts: list[np.ndarray] = field(default_factory=list)
    pairs: list[tuple[int, int]] = field(default_factory=list)
    drawn: dict[str, Tensor] = field(default_factory=dict)


def _merge(
    parts: Sequence[_Sums],
    categories: Categories,
    precision: dict[str, dict[str, float]] | None,
    occlusion_accuracy: bool,
) -> Evaluation:
    merged = PanopticQuality(categories)
    drawn: dict[str, Tensor] = {}
    for part in parts:
        merged.merge(part.quality)
        drawn |= part.drawn
    pairs = [pair for part in parts for pair in part.pairs] if occlusion_accuracy else None
    counts = Counts.of(categories, [state for part in parts for state in part.counts], pairs)
    right, decided = counts.pairs.sum(0).tolist()
    return Evaluation(merged.compute(), counts, precision, (right, decided) if occlusion_accuracy else None, drawn)


def count_right(
    instances: Instances, targets: Targets, result: PanopticResult, config: FusionConfig
) -> tuple[int, int]:
    """Overlapping pairs whose order a result has right, and all whose order the ground truth tells.

    Of a pair, the instance in front is the one that got more of the pixels that both claim; a pair of which
    neither got any is wrong.

    Args:
        instances: detections with `roi_masks`, as they were fused.
        targets: of the same image, at its size.
        result: of the fusion.
        config: of the fusion: which instances and pairs count.
    """
    places = torch.nonzero(instances.scores >= config.score_threshold).squeeze(1)
    chosen = instances[places]
    pairs = contested_pairs(chosen, targets, config.pair_overlap, limit=len(chosen) ** 2)
    if not len(pairs):
        return 0, 0
    assert chosen.roi_masks is not None
    masks = paste_masks(chosen.roi_masks.float(), chosen.boxes, targets.size)
    shown = {segment.instance: segment.id for segment in result.segments if segment.isthing}
    ids = torch.tensor([shown.get(n, -1) for n in places.tolist()], device=masks.device)
    owned = (masks & (result.segment_ids == ids[:, None, None])).flatten(1).float() @ masks.flatten(1).float().T
    front, back = pairs.unbind(1)
    return int((owned[front, back] > owned[back, front]).sum()), len(pairs)


def write_worst(
    evaluation: Evaluation, predictor: Predictor, dataset: PanopticDataset, out: str | Path, count: int
) -> list[Path]:
    """Draw the images of lowest PQ: OUT/worst/PQ_NAME.png, with image, truth, prediction and difference.

    Returns:
        The files, the worst first.
    """
    index = {dataset.name(n)[0]: n for n in range(len(dataset))}
    paths = []
    for entry in evaluation.report.worst(count):
        image, truth = dataset[index[entry.image_id]]
        truth = truth.named(len(dataset.categories))
        truth_result, result = to_result(truth, dataset.categories), predictor(image)
        panels = [side_by_side(image, truth_result, result), difference(image, truth_result, result)]
        path = Path(out) / "worst" / f"{round(1000 * entry.pq):04d}_{Path(entry.file_name).stem}.png"
        write_picture(path, torch.cat(panels, 2))
        paths.append(path)
    return paths


def side_by_side(image: Tensor, truth: PanopticResult, result: PanopticResult) -> Tensor:
    """Image, ground truth and prediction: Tensor[3, H, W] uint8 -> Tensor[3, H, 3 W] uint8."""
    return torch.cat([image, overlay(image, truth), overlay(image, result)], 2)


def to_result(truth: SegmentMap, categories: Categories) -> PanopticResult:
    """Ground truth as a result, to be drawn and compared: segment k has id k + 1, void 0."""
    ids = truth.index + 1
    segments = []
    for number in torch.unique(ids[ids > 0]).tolist():
        ys, xs = torch.nonzero(ids == number, as_tuple=True)
        x, y = int(xs.min()), int(ys.min())
        category = categories[int(truth.labels[number - 1])]
        box = (x, y, int(xs.max()) - x + 1, int(ys.max()) - y + 1)
        segments.append(Segment(number, category.id, category.isthing, None, len(xs), box))
    return PanopticResult(ids.int(), segments, categories)


def segments_info(truth: SegmentMap, categories: Categories) -> list[dict[str, Any]]:
    """COCO's `segments_info` with the ids of `to_result`."""
    return [
        {"id": k + 1, "category_id": categories[int(truth.labels[k])].id, "iscrowd": int(truth.iscrowd[k])}
        for k in torch.unique(truth.index[truth.index >= 0]).tolist()
    ]


class _Indexed:
    """Samples of a data set with their numbers."""

    def __init__(self, dataset: PanopticDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> tuple[int, Tensor, SegmentMap]:
        return (index, *self.dataset[index])


def _read(
    dataset: PanopticDataset, indices: Iterable[int], workers: int
) -> Iterator[tuple[int, Tensor, SegmentMap]]:
    return read_in_workers(_Indexed(dataset), [[index] for index in indices], itemgetter(0), workers)
