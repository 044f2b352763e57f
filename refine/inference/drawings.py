"""Drawings of images, ground truth and results side by side."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Self

import torch
from torch import Tensor

from refine.data.loader import PanopticDataset
from refine.data.segments import SegmentMap
from refine.drawing.overlay import overlay
from refine.drawing.series import worst_images
from refine.drawing.sheet import difference
from refine.evaluation.report import PQReport
from refine.inference.measures import Example, Fused, Measure
from refine.inference.predictor import Predictor
from refine.structures import Categories, PanopticResult, Segment


@dataclass
class Drawings(Measure):
    """Drawings of the first images of a data set with ground truth and result; no numbers.

    Args:
        count: number of images to draw.

    Attributes:
        drawn: Tensor[3, H, 3 W] uint8 RGB by file name.
    """

    count: int
    drawn: dict[str, Tensor] = field(init=False, default_factory=dict)

    def reset(self, categories: Categories) -> None:
        self.drawn = {}

    def update(self, example: Example, fused: Fused) -> None:
        if example.number < self.count:
            truth = to_result(example.truth, example.categories)
            self.drawn[example.file_name] = side_by_side(example.image, truth, fused.result)

    def merge(self, other: Self) -> None:
        self.drawn |= other.drawn

    def compute(self) -> dict[str, float]:
        """Return no numbers."""
        return {}


def write_worst(
    report: PQReport, predictor: Predictor, dataset: PanopticDataset, out: Path, count: int
) -> list[Path]:
    """Draw image, ground truth, result and difference of the images with the lowest PQ, in place of earlier ones.

    Args:
        report: PQ of the images.
        predictor, dataset: evaluated predictor and data set.
        out: file of the report; the drawings are worst/FOLDER/PQ_NAME.png beside it, with PQ in thousandths.
        count: number of images to draw.

    Returns:
        Paths of the files, the lowest PQ first.
    """
    index = {dataset.name(n)[0]: n for n in range(len(dataset))}
    series, paths = worst_images(out), dict[str, Path]()
    series.remove()
    for entry in report.worst(count):
        image, truth = dataset[index[entry.image_id]]
        truth = truth.named(len(dataset.categories))
        truth_result = to_result(truth, dataset.categories)
        result = predictor.fuse(predictor.predict_raw([image], predictor.fusion.score_threshold)[0])
        panels = [side_by_side(image, truth_result, result), difference(image, truth_result, result)]
        name = PurePath(entry.file_name)
        quality = f"{round(1000 * entry.pq):04d}"
        drawing = name.with_name(f"{quality}_{name.stem}.png").as_posix()
        if drawing in paths:  # two images whose names differ in the suffix
            drawing = name.with_name(f"{quality}_{name.name}.png").as_posix()
        paths[drawing] = series.write(drawing, torch.cat(panels, 2))
    return list(paths.values())


def side_by_side(image: Tensor, truth: PanopticResult, result: PanopticResult) -> Tensor:
    """Draw image, ground truth and result side by side: Tensor[3, H, W] uint8 → Tensor[3, H, 3 W] uint8."""
    return torch.cat([image, overlay(image, truth), overlay(image, result)], 2)


def to_result(truth: SegmentMap, categories: Categories) -> PanopticResult:
    """Convert ground truth to a `PanopticResult` for drawing and comparison: segment k has id k + 1, void 0."""
    ids = truth.index + 1
    segments = []
    for number in torch.unique(ids[ids > 0]).tolist():
        ys, xs = torch.nonzero(ids == number, as_tuple=True)
        x, y = int(xs.min()), int(ys.min())
        category = categories[int(truth.labels[number - 1])]
        box = (x, y, int(xs.max()) - x + 1, int(ys.max()) - y + 1)
        segments.append(Segment(number, category.id, category.isthing, None, len(xs), box))
    return PanopticResult(ids.int(), segments, categories)
