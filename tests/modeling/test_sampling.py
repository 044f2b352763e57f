"""Matching and sampling against torchvision's, and by hand."""

import pytest
import torch
from helpers.detection_cases import make_targets, random_boxes
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from refine.modeling.sampling import match, sample, void_share
from refine.structures import VOID


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 6),
    seed=st.integers(0, 999),
    thresholds=st.sampled_from([(0.3, 0.7, True), (0.3, 0.7, False), (0.5, 0.5, False)]),
)
def test_equals_torchvision(count, seed, thresholds):
    low, high, rescue = thresholds
    target = make_targets(random_boxes(count, seed=seed).tolist())
    boxes = random_boxes(200, seed=seed + 1)
    labels, matched = match(boxes, target, low, high, rescue)
    theirs = Matcher(high, low, allow_low_quality_matches=rescue)(box_iou(target.boxes, boxes))
    expected = torch.where(theirs >= 0, 1, torch.where(theirs == Matcher.BELOW_LOW_THRESHOLD, 0, -1))
    assert torch.equal(labels, expected)
    positive = labels == 1
    assert torch.equal(matched[positive], theirs[positive])


def test_rescue_by_hand():
    # One object of 20 × 20. IoU of the boxes: 1/4 (a quarter of it), 1/2, 1/2 (ties are all rescued), 0.
    target = make_targets([[0, 0, 20, 20]])
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 20], [10, 0, 20, 20], [50, 50, 60, 60]]).float()
    assert match(boxes, target, 0.3, 0.7)[0].tolist() == [0, -1, -1, 0]
    assert match(boxes, target, 0.3, 0.7, rescue=True)[0].tolist() == [0, 1, 1, 0]
    assert match(boxes, target, 0.5, 0.5)[0].tolist() == [0, 1, 1, 0]  # a threshold itself is enough
    # An object that no box touches rescues none.
    far = make_targets([[100, 100, 120, 120]])
    assert match(boxes, far, 0.3, 0.7, rescue=True)[0].tolist() == [0, 0, 0, 0]


def test_crowds_are_matched_to_nothing_and_hide_negatives():
    # The crowd covers the left half. Boxes: equal to the crowd; within it; 40 % in it; the object itself,
    # which lies in the crowd; background on the right.
    target = make_targets([[0, 0, 80, 128], [10, 10, 40, 40]], labels=[3, 5], iscrowd=[True, False])
    boxes = torch.tensor(
        [[0, 0, 80, 128], [50, 50, 70, 70], [60, 0, 110, 50], [10, 10, 40, 40], [120, 0, 150, 30]]
    ).float()
    labels, matched = match(boxes, target, 0.5, 0.5)
    assert labels.tolist() == [-1, -1, 0, 1, 0]
    assert matched[3] == 1  # counted among all instances, crowds included
    only_crowd = make_targets([[0, 0, 80, 128]], iscrowd=[True])
    assert match(boxes, only_crowd, 0.5, 0.5)[0].tolist() == [-1, -1, 0, -1, 0]


def test_void_hides_negatives():
    # The left half is void, but for unnamed stuff above. Boxes: void; two fifths void; unnamed stuff; an object on
    # void; outside the image; of no area.
    target = make_targets([[10, 60, 40, 100]], labels=[5])
    target.sem_seg[:, :80] = VOID
    target.sem_seg[:30, :80] = 9
    boxes = torch.tensor(
        [[0, 40, 70, 60], [60, 40, 110, 60], [0, 0, 70, 30], [10, 60, 40, 100], [-50, 40, -20, 60], [5, 50, 5, 60]]
    ).float()
    labels, matched = match(boxes, target, 0.3, 0.5)
    assert labels.tolist() == [-1, 0, 0, 1, 0, 0]
    assert matched[3] == 0


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999))
def test_void_share_by_counting(seed):
    generator = torch.Generator().manual_seed(seed)
    sem_seg = torch.randint(-1, 2, (20, 30), generator=generator)
    boxes = random_boxes(8, size=(30, 40), seed=seed) - 5
    share = void_share(boxes, sem_seg)
    for (x1, y1, x2, y2), value in zip(boxes.round().long().clamp(min=0).tolist(), share, strict=True):
        inside = sem_seg[y1:y2, x1:x2]
        expected = (inside == VOID).float().mean() if inside.numel() else 0.0
        assert value == pytest.approx(float(expected))


def test_no_instance_and_no_box():
    labels, matched = match(random_boxes(7), make_targets(), 0.3, 0.7, rescue=True)
    assert labels.tolist() == [0] * 7
    assert matched.shape == (7,)
    crowded = make_targets([[0, 0, 9, 9], [0, 0, 9, 9]], iscrowd=[True, False])
    labels, matched = match(torch.zeros(0, 4), crowded, 0.3, 0.7, rescue=True)
    assert labels.shape == matched.shape == (0,)


@pytest.mark.parametrize(
    ("positives", "negatives", "drawn"),
    [(50, 500, (16, 48)), (5, 500, (5, 59)), (50, 20, (16, 20)), (0, 0, (0, 0)), (3, 0, (3, 0))],
)
def test_sample_sizes(positives, negatives, drawn):
    labels = torch.tensor([1] * positives + [0] * negatives + [-1] * 30)
    labels = labels[torch.randperm(len(labels))]
    positive, negative = sample(labels, 64, 0.25)
    assert (len(positive), len(negative)) == drawn
    assert (labels[positive] == 1).all()
    assert (labels[negative] == 0).all()
    assert len(set(positive.tolist())) == len(positive)


def test_sample_is_random_and_even():
    labels = torch.tensor([1] * 4 + [0] * 4)
    counts = torch.zeros(8)
    for _ in range(400):
        counts[torch.cat(sample(labels, 4, 0.5))] += 1
    assert ((counts > 150) & (counts < 250)).all()
