"""What the adapters of the programs for cells have in common: `by_stardist.py` and `by_cellpose.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refine.data.loader import PanopticDataset
from refine.data.segments import SegmentMap
from refine.structures import PanopticResult

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""IoU from which a nucleus counts as found."""


@dataclass(frozen=True)
class Fitted:
    """Method that is ready to predict.

    Attributes:
        predict: function from Tensor[3, H, W] uint8 RGB to a result of the same size.
        parameters: number of parameters.
        updates: number of updates of the weights.
        minutes: minutes of training, with reading and augmentation.
        chosen: settings that were chosen on the held-out images.
        versions: version of each foreign package by its name.
    """

    predict: Callable[[Tensor], PanopticResult]
    parameters: int
    updates: int = 0
    minutes: float = 0.0
    chosen: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


class F1:
    """F1 of things over all images, 2 TP / (true + found), at several IoU thresholds.

    A found object is a TP if its IoU with a true one is above 0.5, which makes pairs unique, and at least the
    threshold.
    """

    def __init__(self) -> None:
        self.ious: list[float] = []
        self.objects = 0

    def update(self, truth: PanopticResult, result: PanopticResult) -> None:
        """Add one image."""
        true, found = number_things(truth), number_things(result)
        size = (int(found.max()) + 1, int(true.max()) + 1)
        joint = np.bincount((found * size[1] + true).ravel(), minlength=size[0] * size[1]).reshape(size)
        union = joint.sum(0) + joint.sum(1)[:, None] - joint
        ious = (joint / np.maximum(union, 1))[1:, 1:]
        self.ious += ious[ious > 0.5].tolist()
        self.objects += sum(size) - 2

    def compute(self) -> dict[str, float]:
        """Return F1, 0-1, of each threshold T by the name "F1 at T"."""
        matched = {t: sum(iou >= t for iou in self.ious) for t in THRESHOLDS}
        return {f"F1 at {t:g}": 2 * count / max(self.objects, 1) for t, count in matched.items()}


def number_things(result: PanopticResult) -> np.ndarray:
    """Number the things of a result from 1: [H, W] int64, 0 elsewhere."""
    ids = result.segment_ids.cpu().numpy()
    kept = [0, *(s.id for s in result.segments if s.isthing)]  # sorted
    return np.where(np.isin(ids, kept), np.searchsorted(kept, ids), 0)


def load(dataset: PanopticDataset) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Read all images, each [H, W, 3] uint8 RGB, and the numbers of their nuclei (`number_nuclei`)."""
    examples = [dataset[n] for n in range(len(dataset))]
    return [image.permute(1, 2, 0).numpy() for image, _ in examples], [number_nuclei(s) for _, s in examples]


def number_nuclei(segments: SegmentMap) -> np.ndarray:
    """Number the nuclei from 1: [H, W] int32, 0 for background, -1 for pixels without a label and crowds."""
    lookup = torch.zeros(len(segments.labels) + 1, dtype=torch.int32)
    nucleus = (segments.labels == 0) & ~segments.iscrowd
    lookup[:-1][nucleus] = torch.arange(1, int(nucleus.sum()) + 1, dtype=torch.int32)
    lookup[:-1][segments.iscrowd] = -1
    lookup[-1] = -1  # index -1 is void
    return lookup[segments.index.long()].numpy()
