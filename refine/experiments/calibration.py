"""Calibration of the occlusion head: predicted against observed order of held-out pairs of detections."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from refine.fusion import FusionConfig, OcclusionFn
from refine.modeling.occlusion import detection_pairs
from refine.structures import Prediction, Targets

BINS = 10
"""Number of equal intervals of O in a reliability table."""


@dataclass
class Calibration:
    """Predicted O(front, back) and O(back, front) of pairs whose order the ground truth determines.

    Attributes:
        true: O of pairs of two true detections, Tensor[n, 2] float32 per image.
        false: O of pairs of a true detection, in front, and a false or duplicate one, the same.
    """

    true: list[Tensor] = field(default_factory=list)
    false: list[Tensor] = field(default_factory=list)

    def add(self, prediction: Prediction, targets: Targets, config: FusionConfig, head: OcclusionFn) -> None:
        """Add the overlapping pairs of the detections that fusion uses.

        Args:
            prediction: network's prediction for the image.
            targets: ground truth at the size of the image.
            config: fusion thresholds.
            head: the network's `OcclusionHead.predict`.
        """
        used = prediction.instances[prediction.instances.scores >= config.score_threshold]
        masks = used.mask_runs().dense().flatten(1)
        both = detection_pairs(masks, used.labels, targets.to(masks.device), config.pair_overlap)
        for pairs, predicted in zip(both, (self.true, self.false), strict=True):
            front, back = pairs.unbind(1)
            occlusion = head(used, pairs)
            predicted.append(torch.stack([occlusion[front, back], occlusion[back, front]], 1).cpu())

    def describe(self) -> list[str]:
        """Return Markdown lines: the reliability table and the expected calibration error of each kind of pair."""
        lines = []
        for name, predicted in (("two true detections", self.true), ("a true and a false detection", self.false)):
            table, error = reliability(torch.cat([torch.empty(0, 2), *predicted]))
            lines += [
                "",
                f"Calibration of O on pairs of {name}, in both orders; expected calibration error {error:.3f}:",
                "",
                "| O | number | mean O | in front |",
                "|-|-|-|-|",
            ]
            lines += [
                f"| {low:.1f}-{high:.1f} | {n} | {mean:.2f} | {seen:.2f} |" for low, high, n, mean, seen in table
            ]
        return lines


def reliability(occlusion: Tensor) -> tuple[list[tuple[float, float, int, float, float]], float]:
    """Compare the predicted probability that an instance lies in front with the fraction of times that it does.

    Args:
        occlusion: O(front, back) and O(back, front) of each pair, Tensor[n, 2], 0-1.

    Returns:
        Bounds, number of ordered pairs, mean O and fraction in front of each of the `BINS` intervals that has any;
        and the expected calibration error: the mean of |mean O - fraction| over the ordered pairs, or NaN.
    """
    predicted, front = occlusion.flatten().double(), torch.tensor([1.0, 0.0]).double().repeat(len(occlusion))
    index = (predicted * BINS).long().clamp(max=BINS - 1)
    rows, total = [], 0.0
    for n in index.unique().tolist():
        chosen = index == n
        count, mean, seen = int(chosen.sum()), float(predicted[chosen].mean()), float(front[chosen].mean())
        rows.append((n / BINS, (n + 1) / BINS, count, mean, seen))
        total += count * abs(mean - seen)
    return rows, total / len(predicted) if len(predicted) else float("nan")
