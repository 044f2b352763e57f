"""Tests of bootstrap metrics against PanopticQuality, and of the interval against the normal approximation."""

import numpy as np
import pytest

from refine.evaluation.interval import Counts, metric, paired_interval, read_counts, write_counts
from refine.evaluation.matching import LOW_UNITS, UNITS
from refine.evaluation.pq import PanopticQuality
from refine.structures import Categories, Category

CATEGORIES = Categories(
    [Category(1, "a", True, (1, 2, 3)), Category(2, "b", True, (4, 5, 6)), Category(3, "c", False, (7, 8, 9))]
)


def random_counts(seed: int, images: int = 30) -> Counts:
    random = np.random.default_rng(seed)
    pq = np.zeros((images, 5, 3), np.int64)
    pq[:, :3] = random.integers(0, 4, (images, 3, 3))
    iou = (random.uniform(0.5, 1, (images, 3)) * pq[:, 0] * UNITS).astype(np.int64)
    pq[:, 3], pq[:, 4] = np.divmod(iou, LOW_UNITS)
    known = random.integers(0, 3, images)
    return Counts(pq, np.stack([np.minimum(known, 1), known], 1), np.array([True, True, False]))


@pytest.mark.parametrize("measure", ["PQ", "SQ", "RQ"])
@pytest.mark.parametrize(("suffix", "isthing"), [("", None), ("_things", True), ("_stuff", False)])
def test_metrics_of_repeated_images_equal_panoptic_quality(measure, suffix, isthing):
    counts = random_counts(0)
    counts.pq[:, :, 1] *= np.arange(30)[:, None] < 3  # a class that is absent from some samples
    weights = np.random.default_rng(1).multinomial(30, np.full(30, 1 / 30), 6)
    weights[0] = 1
    weights[1, :3] = 0
    for value, weight in zip(metric(counts, weights, measure + suffix), weights, strict=True):
        state = (weight[:, None, None] * counts.pq).sum(0)
        group = PanopticQuality.from_state(CATEGORIES, state).compute().group(isthing)
        assert value == pytest.approx(group[measure.lower()], abs=1e-12)


def test_fraction_of_correctly_ordered_pairs():
    counts = Counts(np.zeros((2, 5, 1), np.int64), np.array([[1, 2], [3, 3]]), np.array([True]))
    values = metric(counts, np.array([[1, 1], [2, 0], [0, 0]]), "pairs_right")
    assert values[:2].tolist() == [4 / 5, 1 / 2]
    assert np.isnan(values[2])


def test_interval_of_a_fraction_equals_the_normal_approximation():
    """With one seed and one pair per image, the difference of two fractions is a mean over images."""
    random = np.random.default_rng(2)
    right = random.random((2, 400)) < np.array([[0.8], [0.6]])
    row, baseline = (
        Counts(np.zeros((400, 5, 1), np.int64), np.stack([r, np.ones(400)], 1).astype(np.int64), np.array([True]))
        for r in right
    )
    low, high = paired_interval([row], [baseline], "pairs_right")
    difference = right[0].astype(float) - right[1]
    error = 1.96 * difference.std() / 20
    assert low == pytest.approx(difference.mean() - error, abs=0.012)
    assert high == pytest.approx(difference.mean() + error, abs=0.012)


def test_pairing_and_seeds():
    """Differences common to all images cancel; differences between seeds widen the interval."""
    first, second = random_counts(3), random_counts(4)
    assert paired_interval([first, second], [first, second], "PQ") == (0, 0)
    one = paired_interval([first], [second], "PQ")
    both = paired_interval([first, second], [second, first], "PQ")
    assert both[0] < 0 < both[1]
    assert both[1] - both[0] > one[1] - one[0]
    no_pairs = Counts(first.pq, np.zeros((30, 2), np.int64), first.isthing)
    assert paired_interval([no_pairs], [no_pairs], "pairs_right") is None


def test_counts_round_trip_through_a_file(tmp_path):
    counts = random_counts(5)
    write_counts(tmp_path / "a/b.npz", counts)
    read = read_counts(tmp_path / "a/b.npz")
    assert all(np.array_equal(getattr(read, k), getattr(counts, k)) for k in ("pq", "pairs", "isthing"))
    assert metric(read, np.ones((1, 30)), "PQ") == metric(counts, np.ones((1, 30)), "PQ")
