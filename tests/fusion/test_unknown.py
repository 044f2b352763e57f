"""Tests of Unknown Erasing against a step-by-step reference, and on hand-drawn maps."""

import cc3d
import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refine.errors import RefineError
from refine.fusion import FusionConfig, fuse
from refine.fusion.unknown import erase_dilated, erase_unknown
from refine.structures import VOID, Categories, Category, Instances


def brute_force(labels: np.ndarray, confidence: np.ndarray, radius: int, threshold: float) -> np.ndarray:
    """Dilate each class, label the dilated mask 4-connectedly, score each group by its original pixels."""
    result = labels.copy()
    for label in np.unique(labels[labels >= 0]):
        mask = labels == label
        square = np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
        dilated = cv2.dilate(mask.astype(np.uint8), square)
        groups = cc3d.connected_components(dilated, connectivity=4)
        for group in range(1, groups.max() + 1):
            core = mask & (groups == group)
            if confidence[core].mean(dtype=np.float64) < threshold:
                result[core] = VOID
    return result


@pytest.mark.parametrize("radius", [0, 1, 2, 3, 5, 9])
def test_equals_brute_force_on_noise(radius: int) -> None:
    rng = np.random.default_rng(radius)
    for n in range(60):
        height, width = rng.integers(1, 45, 2)
        # From single pixels to large patches, of few classes and of one class in a void.
        coarse = rng.integers(-1, rng.integers(1, 4), (height, width))
        sparse = np.where(rng.random((height, width)) < rng.choice([0.5, 0.1, 0.01]), coarse, VOID)
        labels = np.kron(sparse, np.ones((1 + n % 3, 1 + n % 2), int))
        confidence = rng.random(labels.shape, dtype=np.float32)
        got = erase_unknown(torch.from_numpy(labels), torch.from_numpy(confidence), radius, 0.5)
        np.testing.assert_array_equal(got.numpy(), brute_force(labels, confidence, radius, 0.5))


@pytest.mark.parametrize("radius", [0, 1, 4])
def test_the_literal_reading_equals_brute_force(radius: int) -> None:
    rng = np.random.default_rng(radius)
    for n in range(30):
        height, width = rng.integers(1, 40, 2)
        labels = np.kron(rng.integers(-1, 3, (height, width)), np.ones((1 + n % 3, 1 + n % 2), int))
        probabilities = rng.random((3, *labels.shape), dtype=np.float32)
        expected = labels.copy()
        for label in range(1, 3):  # class 0 is a thing, and stays
            mask = labels == label
            dilated = cv2.dilate(mask.astype(np.uint8), np.ones((2 * radius + 1, 2 * radius + 1), np.uint8))
            groups = cc3d.connected_components(dilated, connectivity=4)
            for group in range(1, groups.max() + 1):
                if probabilities[label][groups == group].mean(dtype=np.float64) < 0.5:
                    expected[mask & (groups == group)] = VOID
        got = erase_dilated(torch.from_numpy(labels), torch.from_numpy(probabilities), radius, 0.5, 1)
        np.testing.assert_array_equal(got.numpy(), expected)


def test_a_confident_crumb_is_erased_by_the_literal_reading_alone() -> None:
    """Far from any other uncertain region its own pixels are sure; what surrounds it is not of its class."""
    categories = Categories([Category(k, f"class{k}", k == 1, (0, 0, 0)) for k in (1, 2, 3)])
    sem_seg = torch.full((80, 80), 1)
    sem_seg[40:44, 40:44] = 2
    probabilities = torch.nn.functional.one_hot(sem_seg, 3).movedim(-1, 0) * 0.9 + 0.05
    none = Instances((80, 80), torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    given = {"categories": categories, "sem_confidence": torch.full((80, 80), 0.95)}
    kept = {}
    for region in ("core", "dilated"):
        config = FusionConfig(stuff_area=0, unknown_erasing=True, ue_radius=50, ue_region=region)
        result = fuse(none, sem_seg, config=config, sem_probabilities=probabilities, **given)
        kept[region] = sorted(segment.category_id for segment in result.segments)
    assert kept == {"core": [2, 3], "dilated": [2]}
    with pytest.raises(RefineError, match="sem_probabilities: missing"):
        fuse(none, sem_seg, config=config, **given)
    with pytest.raises(RefineError, match="ue_region is 'all'; give one of core, dilated"):
        FusionConfig(ue_region="all")


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_two_pixels_join_if_their_dilations_touch(data: st.DataObject) -> None:
    """A confident and an uncertain pixel share a score if their distance is small enough."""
    radius = data.draw(st.integers(0, 4))
    ya, yb = data.draw(st.integers(0, 29)), data.draw(st.integers(0, 29))
    xa, xb = data.draw(st.integers(0, 29)), data.draw(st.integers(0, 29))
    labels = torch.full((30, 30), VOID)
    labels[ya, xa] = labels[yb, xb] = 3
    confidence = torch.zeros(30, 30)
    confidence[ya, xa] = 1.0
    confidence[yb, xb] = 0.1 if (ya, xa) != (yb, xb) else 1.0  # together 0.55, which is kept
    got = erase_unknown(labels, confidence, radius, 0.5)
    dx, dy, reach = abs(xa - xb), abs(ya - yb), 2 * radius + 1
    joined = dx <= reach and dy <= reach and not (dx == dy == reach)
    assert got[ya, xa] == 3
    assert got[yb, xb] == (3 if joined else VOID)


def test_confident_pixels_near_an_uncertain_area_are_erased() -> None:
    # An uncertain area (0.4), a confident pixel two pixels away, and another far away.
    labels = torch.full((9, 20), VOID)
    labels[2:7, 1:6] = 0
    labels[4, 8] = 0
    labels[4, 18] = 0
    confidence = torch.full((9, 20), 0.4)
    confidence[4, 8] = confidence[4, 18] = 1.0
    got = erase_unknown(labels, confidence, 2, 0.5)
    assert (got[:, :10] == VOID).all()  # (25·.4 + 1) / 26 < .5
    assert got[4, 18] == 0  # more than 2r + 1 = 5 columns away: scored separately
    # Without dilation each is scored separately.
    assert erase_unknown(labels, confidence, 0, 0.5)[4, 8] == 0


def test_classes_do_not_join_and_things_are_kept() -> None:
    labels = torch.tensor([[0, 1, 2, 2]])
    confidence = torch.tensor([[0.1, 0.1, 0.9, 0.2]])
    got = erase_unknown(labels, confidence, 3, 0.5, first_class=1)
    assert got.tolist() == [[0, VOID, 2, 2]]  # 0 is a thing; 1 is uncertain; the mean of 2 is .55


def test_a_mean_at_the_threshold_is_kept() -> None:
    got = erase_unknown(torch.zeros(1, 2, dtype=torch.int64), torch.tensor([[0.25, 0.75]]), 1, 0.5)
    assert got.tolist() == [[0, 0]]


def test_nothing_to_erase() -> None:
    void = torch.full((4, 5), VOID)
    assert torch.equal(erase_unknown(void, torch.zeros(4, 5), 50, 0.5), void)
