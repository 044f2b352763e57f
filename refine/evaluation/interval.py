"""Bootstrap confidence interval of the difference between two table rows, over validation images and seeds."""

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
    """Contribution of each of N images to the metrics of one run, with C classes.

    Attributes:
        pq: [N, 5, C] int64, counts per image as in `PanopticQuality.state`.
        pairs: [N, 2] int64, correctly ordered overlapping pairs, and all pairs whose order is known.
        isthing: [C] bool, whether each class is a thing.
    """

    pq: np.ndarray
    pairs: np.ndarray
    isthing: np.ndarray

    @classmethod
    def of(
        cls, categories: Categories, pq: Sequence[np.ndarray], pairs: Sequence[tuple[int, int]] | None = None
    ) -> Counts:
        """Stack the counts of single images; `pairs` of None, for unmeasured pairs, gives zeros."""
        return cls(
            np.array(pq, np.int64).reshape(-1, 5, len(categories)),
            np.zeros((len(pq), 2), np.int64) if pairs is None else np.array(pairs, np.int64).reshape(-1, 2),
            np.array([category.isthing for category in categories], bool),
        )


def write_counts(path: Path, counts: Counts) -> None:
    """Write counts to a .npz file, atomically."""
    content = io.BytesIO()
    np.savez_compressed(content, pq=counts.pq, pairs=counts.pairs, isthing=counts.isthing)
    write_bytes(path, content.getbuffer())


def read_counts(path: str | Path) -> Counts:
    """Read a file that `write_counts` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        return Counts(arrays["pq"], arrays["pairs"], arrays["isthing"])


def metric(counts: Counts, weights: np.ndarray, name: str) -> np.ndarray:
    """Compute a metric for B bootstrap samples of the images.

    Args:
        counts: counts of one run.
        weights: [B, N] integer, how often each sample contains each image.
        name: PQ, SQ or RQ, optionally with the suffix _things or _stuff, or "pairs_right".

    Returns:
        [B] float64, 0-1; NaN where the metric is undefined.
    """
    weights = weights.astype(np.float64)
    if name == "pairs_right":
        right, known = (weights @ counts.pairs).T
        return np.divide(right, known, out=np.full_like(right, np.nan), where=known > 0)
    measure, _, kind = name.partition("_")
    included = {"": counts.isthing | True, "things": counts.isthing, "stuff": ~counts.isthing}[kind]
    part = counts.pq[:, :, included]
    tp, fp, fn, high, low = np.moveaxis((weights @ part.reshape(len(part), -1)).reshape(-1, *part.shape[1:]), 1, 0)[
        [TP, FP, FN, IOU_HIGH, IOU_LOW]
    ]
    iou, weight = (high * LOW_UNITS + low) / UNITS, tp + 0.5 * fp + 0.5 * fn
    numerator, denominator = {"PQ": (iou, weight), "SQ": (iou, tp), "RQ": (tp, weight)}[measure]
    values = np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)
    present = (weight > 0).sum(1)
    return np.divide(values.sum(1), present, out=np.full(len(values), np.nan), where=present > 0)


def paired_interval(row: Sequence[Counts], baseline: Sequence[Counts], name: str) -> tuple[float, float] | None:
    """Return the interval that contains 95% of the bootstrapped mean differences between two rows.

    Each sample draws images and seeds with replacement, the same ones for both rows.

    Args:
        row, baseline: counts of each seed, with the same seeds and images in the same order.
        name: metric, see `metric`.

    Returns:
        (low, high) of row − baseline, -1 to 1; None if the metric is undefined in any sample.
    """
    random = np.random.default_rng(0)
    images, seeds = len(row[0].pq), len(row)
    weights = random.multinomial(images, np.full(images, 1 / images), SAMPLES)
    differences = np.stack(
        [metric(a, weights, name) - metric(b, weights, name) for a, b in zip(row, baseline, strict=True)], 1
    )
    sampled = random.integers(seeds, size=(SAMPLES, seeds))
    means = np.take_along_axis(differences, sampled, 1).mean(1)
    if np.isnan(means).any():
        return None
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
