"""How sure a difference between two rows of a table is: bootstrap over the validation images and the seeds."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refine.evaluation.matching import FN, FP, IOU_HIGH, IOU_LOW, LOW_UNITS, TP, UNITS
from refine.files import write_bytes
from refine.structures import Categories

SAMPLES, LEVEL = 2000, 0.95


@dataclass
class Counts:
    """What each of N images adds to the metrics of one run, over C classes.

    Attributes:
        pq: [N, 5, C] int64, as `PanopticQuality.state` counts.
        pairs: [N, 2] int64, overlapping pairs in the right order, and all whose order is known.
        isthing: [C] bool.
    """

    pq: np.ndarray
    pairs: np.ndarray
    isthing: np.ndarray

    @classmethod
    def of(
        cls, categories: Categories, pq: Sequence[np.ndarray], pairs: Sequence[tuple[int, int]] | None = None
    ) -> Counts:
        """Counts of images one by one; without `pairs`, where none were looked for, they are 0."""
        return cls(
            np.array(pq, np.int64).reshape(-1, 5, len(categories)),
            np.zeros((len(pq), 2), np.int64) if pairs is None else np.array(pairs, np.int64).reshape(-1, 2),
            np.array([category.isthing for category in categories], bool),
        )


def write_counts(path: Path, counts: Counts) -> None:
    """Write a .npz file, atomically."""
    content = io.BytesIO()
    np.savez_compressed(content, pq=counts.pq, pairs=counts.pairs, isthing=counts.isthing)
    write_bytes(path, content.getbuffer())


def read_counts(path: str | Path) -> Counts:
    """Read what `write_counts` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        return Counts(arrays["pq"], arrays["pairs"], arrays["isthing"])


def metric(counts: Counts, weights: np.ndarray, name: str) -> np.ndarray:
    """A metric of the same images taken several times, or not at all.

    Args:
        counts: of one run.
        weights: [B, N], how often each image is taken, in each of B samples.
        name: PQ, SQ or RQ, alone or with _things or _stuff, or "pairs_right".

    Returns:
        [B] float64, 0-1; NaN where nothing was to be measured.
    """
    weights = weights.astype(np.float64)
    if name == "pairs_right":
        right, known = (weights @ counts.pairs).T
        return np.divide(right, known, out=np.full_like(right, np.nan), where=known > 0)
    measure, _, kind = name.partition("_")
    chosen = {"": counts.isthing | True, "things": counts.isthing, "stuff": ~counts.isthing}[kind]
    part = counts.pq[:, :, chosen]
    tp, fp, fn, high, low = np.moveaxis((weights @ part.reshape(len(part), -1)).reshape(-1, *part.shape[1:]), 1, 0)[
        [TP, FP, FN, IOU_HIGH, IOU_LOW]
    ]
    iou, weight = (high * LOW_UNITS + low) / UNITS, tp + 0.5 * fp + 0.5 * fn
    above, below = {"PQ": (iou, weight), "SQ": (iou, tp), "RQ": (tp, weight)}[measure]
    values = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    present = (weight > 0).sum(1)
    return np.divide(values.sum(1), present, out=np.full(len(values), np.nan), where=present > 0)


def paired_interval(ours: Sequence[Counts], theirs: Sequence[Counts], name: str) -> tuple[float, float] | None:
    """Interval that holds 95% of the bootstrapped mean differences between two rows.

    Each sample draws the images and the seeds anew, with replacement, the same for both rows.

    Args:
        ours, theirs: of the same seeds on the same images, in the same order.
        name: of `metric`.

    Returns:
        (low, high), -1 to 1; None where a sample may have nothing to measure.
    """
    random = np.random.default_rng(0)
    images, seeds = len(ours[0].pq), len(ours)
    weights = random.multinomial(images, np.full(images, 1 / images), SAMPLES)
    differences = np.stack(
        [metric(a, weights, name) - metric(b, weights, name) for a, b in zip(ours, theirs, strict=True)], 1
    )
    drawn = random.integers(seeds, size=(SAMPLES, seeds))
    means = np.take_along_axis(differences, drawn, 1).mean(1)
    if np.isnan(means).any():
        return None
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
