"""Tests of box operations against torchvision, hand-computed values and invariants."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import batched_nms, clip_boxes_to_image
from torchvision.ops import box_iou as torchvision_iou

from refine.ops.boxes import (
    SCALE_CLAMP,
    box_iou,
    clip_boxes,
    decode_boxes,
    encode_boxes,
    intersection_over_area,
    is_nonempty,
    nms,
)

ONE = (1.0, 1.0, 1.0, 1.0)
HEAD = (10.0, 10.0, 5.0, 5.0)


def boxes_of(n: int, seed: int, extent: float = 300) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=g) * extent
    size = extent / 50 + torch.rand(n, 2, generator=g) * extent / 2
    return torch.cat([corner, corner + size], 1)


@pytest.mark.parametrize("weights", [ONE, HEAD, (30.0, 30.0, 15.0, 15.0)])
def test_coding_equals_torchvision(weights):
    reference, boxes = boxes_of(50, 1), boxes_of(50, 2)
    coder = BoxCoder(weights)
    deltas = encode_boxes(reference, boxes, weights)
    torch.testing.assert_close(deltas, coder.encode_single(boxes, reference), atol=2e-5, rtol=1e-5)
    deltas = torch.randn(50, 12) * 3  # three sets per box, some of them clamped
    expected = coder.decode_single(deltas, reference)
    torch.testing.assert_close(decode_boxes(deltas, reference, weights), expected, atol=1e-3, rtol=1e-5)


@settings(max_examples=50, deadline=None)
@given(n=st.integers(0, 20), seed=st.integers(0, 9999), weights=st.sampled_from([ONE, HEAD]))
def test_decoding_undoes_encoding(n, seed, weights):
    reference, boxes = boxes_of(n, seed), boxes_of(n, seed + 1)
    deltas = encode_boxes(reference, boxes, weights)
    assert deltas.shape == (n, 4)
    torch.testing.assert_close(decode_boxes(deltas, reference, weights), boxes, atol=2e-3, rtol=1e-4)


def test_coding_of_a_hand_computed_example():
    # 10..30 × 20..30 (centre 20, 25), moved 5 right and 2 up, twice as wide and half as high:
    # centre 25, 23; width 40, height 5.
    reference = torch.tensor([[10.0, 20.0, 30.0, 30.0]])
    boxes = torch.tensor([[5.0, 20.5, 45.0, 25.5]])
    expected = torch.tensor([[5 / 20, -2 / 10, math.log(2), -math.log(2)]])
    torch.testing.assert_close(encode_boxes(reference, boxes, ONE), expected)
    torch.testing.assert_close(decode_boxes(expected, reference, ONE), boxes)


def test_growth_is_clamped():
    reference = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    huge = decode_boxes(torch.tensor([[0.0, 0.0, 99.0, 1.0]]), reference, ONE)
    torch.testing.assert_close(huge[0, 2] - huge[0, 0], torch.tensor(1000.0))
    small = decode_boxes(torch.tensor([[0.0, 0.0, 99.0, 1.0]]), reference, ONE, clamp=0.0)
    torch.testing.assert_close(small, reference)
    assert math.isclose(SCALE_CLAMP, 4.135166556742356)


def test_low_precision_deltas_give_float32_boxes():
    reference = boxes_of(5, 0, extent=1300)
    with torch.autocast("cpu", torch.bfloat16):
        boxes = decode_boxes(torch.zeros(5, 4, dtype=torch.bfloat16), reference, HEAD)
        assert encode_boxes(reference, reference, HEAD).dtype == torch.float32
    assert boxes.dtype == torch.float32
    torch.testing.assert_close(boxes, reference)


def test_clipping_equals_torchvision():
    boxes = boxes_of(40, 3) - 60
    assert torch.equal(clip_boxes(boxes, (100, 140)), clip_boxes_to_image(boxes, (100, 140)))
    wide = torch.cat([boxes, boxes + 9], 1)
    torch.testing.assert_close(clip_boxes(wide, (100, 140))[:, :4], clip_boxes(boxes, (100, 140)))
    assert clip_boxes(boxes.view(4, 10, 4), (100, 140)).shape == (4, 10, 4)


def test_nonempty():
    boxes = torch.tensor([[0, 0, 1, 1], [2, 2, 2, 5], [2, 2, 5, 2], [3, 3, 2, 2], [0, 0, 0.01, 9]])
    assert is_nonempty(boxes).tolist() == [True, False, False, False, True]


@settings(max_examples=20, deadline=None)
@given(n=st.integers(0, 9), m=st.integers(0, 9), seed=st.integers(0, 999))
def test_iou_equals_torchvision(n, m, seed):
    a, b = boxes_of(n, seed), boxes_of(m, seed + 1)
    torch.testing.assert_close(box_iou(a, b), torchvision_iou(a, b))


def test_intersection_over_area_of_a_hand_computed_example():
    # A 4 × 2 box; the regions contain all of it, its left half, a quarter of it, and nothing (they touch).
    box = torch.tensor([[2.0, 2.0, 6.0, 4.0]])
    regions = torch.tensor([[0, 0, 9, 9], [2, 2, 4, 4], [0, 0, 4, 3], [6, 2, 8, 4]]).float()
    torch.testing.assert_close(intersection_over_area(box, regions), torch.tensor([[1.0, 0.5, 0.25, 0.0]]))


def nms_slowly(boxes, scores, groups, iou):
    """Suppress greedily: the best remaining box is kept unless a kept box of its group overlaps it."""
    kept = []
    for n in sorted(range(len(boxes)), key=lambda n: (-scores[n], n)):
        rivals = [k for k in kept if groups[k] == groups[n]]
        if not rivals or torchvision_iou(boxes[[n]], boxes[rivals]).max() <= iou:
            kept.append(n)
    return kept


@settings(max_examples=30, deadline=None)
@given(n=st.integers(0, 40), seed=st.integers(0, 999), iou=st.sampled_from([0.3, 0.5, 0.7]))
def test_nms_equals_slow_reference(n, seed, iou):
    boxes = boxes_of(n, seed, extent=60)
    g = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 6, (n,), generator=g) / 5  # many ties
    groups = torch.randint(0, 3, (n,), generator=g)
    expected = nms_slowly(boxes, scores.tolist(), groups, iou)
    assert nms(boxes, scores, groups, iou).tolist() == expected


@pytest.mark.parametrize("count", [0, 50, 2000])
def test_nms_equals_torchvision(count):
    corner = torch.rand(count, 2) * 100
    boxes = torch.cat([corner, corner + 5 + torch.rand(count, 2) * 40], 1)
    scores, groups = torch.rand(count), torch.arange(count) % 5
    assert torch.equal(nms(boxes, scores, groups, 0.5), batched_nms(boxes, scores, groups, 0.5))


def test_nms_of_many_boxes_keeps_ties_in_order():
    # torchvision uses a different algorithm above a thousand boxes.
    boxes = torch.arange(3000.0)[:, None] * 10 + torch.tensor([0.0, 0.0, 5.0, 5.0])
    kept = nms(boxes, torch.full((3000,), 0.5), torch.arange(3000) % 7, 0.5)
    assert torch.equal(kept, torch.arange(3000))
