"""Evaluation of a model on a data set, on one process or many."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
from torch import Tensor

from refine.config import from_mapping
from refine.data.build import build_dataset
from refine.data.config import DatasetConfig
from refine.data.loader import PanopticDataset
from refine.data.segments import SegmentMap
from refine.data.workers import read_in_workers
from refine.evaluation.interval import Counts
from refine.evaluation.report import PQReport
from refine.fusion import FusionConfig
from refine.fusion.config import AnyMethod
from refine.inference.measures import BoxAndMaskAP, Example, Fused, Measure, OrderAccuracy, Quality
from refine.inference.predictor import Predictor
from refine.runtime import Processes
from refine.structures import Categories

ALONE = Processes(0, 1, torch.device("cpu"))

Rule = tuple[AnyMethod, FusionConfig]
M = TypeVar("M", bound=Measure)


class Evaluation:
    """Measures of all images under one fusion rule.

    `evaluation[Quality]` returns the measure of this class; KeyError if there is none.

    Args:
        measures: measures updated with all images, at most one of each class.
    """

    def __init__(self, measures: Sequence[Measure]) -> None:
        self._measures = {type(measure): measure for measure in measures}

    def __getitem__(self, kind: type[M]) -> M:
        measure = self._measures[kind]
        assert isinstance(measure, kind)
        return measure

    def __contains__(self, kind: type[Measure]) -> bool:
        return kind in self._measures

    @property
    def report(self) -> PQReport:
        """PQ, SQ and RQ over all classes, things and stuff, and per class and image."""
        return self[Quality].report

    @property
    def counts(self) -> Counts:
        """Counts of each image for PQ and, if `OrderAccuracy` was measured, for the order of pairs."""
        quality = self[Quality]
        pairs = self[OrderAccuracy].pairs if OrderAccuracy in self else None
        return Counts.of(quality.quality.categories, quality.counts, pairs)

    @property
    def metrics(self) -> dict[str, float]:
        """Main numbers of all measures by name, 0-1, without those that are NaN."""
        numbers: dict[str, float] = {}
        for measure in self._measures.values():
            numbers |= measure.compute()
        return {name: float(value) for name, value in numbers.items() if math.isfinite(value)}

    def write(self, path: str | Path, **more: object) -> None:
        """Write the PQ report, AP if measured, and the fields in `more` as JSON."""
        precision: dict[str, Any] | None = None
        if BoxAndMaskAP in self:
            measure = self[BoxAndMaskAP]
            precision = {"max_detections": measure.precision.limit, **measure.table}
        report = self.report
        report.write(path, AP=precision, images=len(report.images), **more)


@overload
def evaluate(
    predictor: Predictor,
    dataset: PanopticDataset | Mapping[str, str],
    *,
    rules: None = None,
    measures: Sequence[Measure] | None = None,
    max_images: int | None = None,
    workers: int = 0,
    group: Processes = ALONE,
) -> Evaluation: ...


@overload
def evaluate(
    predictor: Predictor,
    dataset: PanopticDataset | Mapping[str, str],
    *,
    rules: Sequence[Rule],
    measures: Sequence[Measure] | None = None,
    max_images: int | None = None,
    workers: int = 0,
    group: Processes = ALONE,
) -> list[Evaluation]: ...


def evaluate(
    predictor: Predictor,
    dataset: PanopticDataset | Mapping[str, str],
    *,
    rules: Sequence[Rule] | None = None,
    measures: Sequence[Measure] | None = None,
    max_images: int | None = None,
    workers: int = 0,
    group: Processes = ALONE,
) -> Evaluation | list[Evaluation]:
    """Evaluate a predictor on a data set. The network runs once per image for all rules.

        data = {"images": "val", "json": "panoptic_val.json", "segments": "panoptic_val"}
        refine.evaluate(refine.Predictor("nuclei"), data).metrics["PQ"]

    Memory grows by 40 bytes per image and class, plus the run-length masks that AP needs.

    Args:
        predictor: predictor whose model has the categories of the data set.
        dataset: data set with ground truth, or the fields of a `DatasetConfig`.
        rules: pairs of method and thresholds, evaluated separately; None stands for the predictor's own rule.
        measures: measures to compute, at most one of each class; None stands for `Quality` alone.
        max_images: maximum number of images; the first ones are used.
        workers: number of processes that read images.
        group: processes that share the images, each a contiguous part, so that the order of all images is that of
            the data set; each process returns the evaluation of all images.

    Returns:
        One evaluation, or one per rule if `rules` is given.

    Raises:
        RefineError: model and data set have different categories, or a file cannot be read.
    """
    if isinstance(dataset, Mapping):
        dataset = build_dataset(from_mapping(DatasetConfig, dataset, "dataset"), "dataset.")
    predictor.categories.check_equal(dataset.categories, "the model", "the data set")
    pairs = [(predictor.method, predictor.fusion)] if rules is None else list(rules)
    requested = [Quality()] if measures is None else list(measures)
    shared = _copies((m for m in requested if m.before_fusion), dataset.categories)
    own = [_copies((m for m in requested if not m.before_fusion), dataset.categories) for _ in pairs]
    everything = any(measure.all_detections for measure in requested)
    min_score = 0.0 if everything else min(config.score_threshold for _, config in pairs)
    total = min(max_images or len(dataset), len(dataset))
    own_images = range(group.rank * total // group.count, (group.rank + 1) * total // group.count)
    for index, image, truth in _read(dataset, own_images, workers):
        truth = truth.named(len(dataset.categories))
        prediction = predictor.predict_raw([image], min_score)[0]
        example = Example(index, image, truth, *dataset.name(index), dataset.categories, prediction)
        for number, ((method, config), part) in enumerate(zip(pairs, own, strict=True)):
            fused = Fused(predictor.fuse(prediction, method, config), config)
            for measure in [*part, *(shared if number == 0 else [])]:
                measure.update(example, fused)
    common = gathered(shared, dataset.categories, group)
    evaluations = [Evaluation([*gathered(part, dataset.categories, group), *common]) for part in own]
    return evaluations[0] if rules is None else evaluations


def _copies(measures: Iterable[Measure], categories: Categories) -> list[Measure]:
    """Return copies of the measures, reset to no images."""
    copies = [copy.copy(measure) for measure in measures]
    for measure in copies:
        measure.reset(categories)
    return copies


def merged(parts: Sequence[Evaluation]) -> Evaluation:
    """Merge the evaluations of consecutive parts of a data set."""
    whole = copy.deepcopy(parts[0])
    for part in parts[1:]:
        for kind, measure in whole._measures.items():
            measure.merge(part._measures[kind])
    return whole


def gathered(measures: Sequence[Measure], categories: Categories, group: Processes) -> list[Measure]:
    """Merge the measures of all processes."""
    wholes = _copies(measures, categories)
    for parts in group.gather(list(measures)):
        for whole, part in zip(wholes, parts, strict=True):
            whole.merge(part)
    return wholes


class _Indexed:
    """Data set whose samples include their index."""

    def __init__(self, dataset: PanopticDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> tuple[int, Tensor, SegmentMap]:
        return (index, *self.dataset[index])


def _read(
    dataset: PanopticDataset, indices: Iterable[int], workers: int
) -> Iterator[tuple[int, Tensor, SegmentMap]]:
    return read_in_workers(_Indexed(dataset), [[index] for index in indices], itemgetter(0), workers)
