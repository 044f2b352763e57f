"""Tests of mask pasting and runs against grid_sample, torchvision and detectron2's own outputs."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_mask_in_image

from refine.ops.masks import dense_runs, paste_masks, paste_runs


def probabilities(roi_masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Sample every mask at every pixel centre in float64, as detectron2 does before thresholding at 0.5."""
    x1, y1, x2, y2 = (side[:, None] for side in boxes.double().unbind(1))
    y, x = torch.arange(size[0]) + 0.5, torch.arange(size[1]) + 0.5
    gy, gx = (y - y1) / (y2 - y1) * 2 - 1, (x - x1) / (x2 - x1) * 2 - 1
    grid = torch.stack([gx[:, None].expand(-1, size[0], -1), gy[:, :, None].expand(-1, -1, size[1])], 3)
    return F.grid_sample(roi_masks[:, None].double(), grid, align_corners=False)[:, 0]


def check(roi_masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5) -> None:
    expected = probabilities(roi_masks, boxes, size)
    got = paste_masks(roi_masks, boxes, size, threshold)
    clear = (expected - threshold).abs() > 1e-4  # elsewhere the result depends on rounding
    assert torch.equal(got[clear], (expected >= threshold)[clear])


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(0, 5),
    bins=st.sampled_from([1, 2, 7, 28]),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    extent=st.sampled_from([0.3, 3.0, 30.0, 300.0]),
    threshold=st.sampled_from([0.5, 0.05, 0.9]),
    smooth=st.booleans(),
    seed=st.integers(0, 999),
)
def test_equals_grid_sample(count, bins, size, extent, threshold, smooth, seed):
    # Boxes much smaller and much larger than the image; inside it, across its border and outside.
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=g) * 60 - 15
    boxes = torch.cat([corner, corner + torch.rand(count, 2, generator=g) * extent + 0.01], 1)
    masks = torch.rand(count, bins, bins, generator=g)
    if smooth and bins > 2:
        masks = F.avg_pool2d(masks[:, None], 3, 1, 1)[:, 0]
    check(masks, boxes, size, threshold)


def test_masks_of_zeros_and_ones():
    masks = torch.zeros(3, 28, 28)
    masks[0] = 1
    masks[1, :14] = 1
    check(masks, torch.tensor([[2.0, 3.0, 30.0, 31.0]] * 3), (40, 40))


def test_a_full_mask_fills_its_box():
    # The value is 1 up to half a bin (28 / 28 / 2 pixels) inside the box, then falls to 0 over one bin, so it is
    # 0.5 at the edge of the box.
    pasted = paste_masks(torch.ones(1, 28, 28), torch.tensor([[4.0, 6.0, 32.0, 34.0]]), (40, 40))
    expected = torch.zeros(1, 40, 40, dtype=torch.bool)
    expected[:, 6:34, 4:32] = True
    assert torch.equal(pasted, expected)


@pytest.mark.parametrize(
    "box",
    [[5, 5, 5, 9], [5, 5, 9, 5], [9, 9, 5, 5], [float("nan"), 0, 5, 5], [0, 0, float("inf"), 5], [50, 50, 60, 60]],
)
def test_boxes_without_area_in_the_image_give_empty_masks(box):
    masks, boxes = torch.ones(2, 28, 28), torch.tensor([[1.0, 1.0, 3.0, 3.0], box])
    assert paste_masks(masks, boxes, (10, 12)).sum((1, 2)).tolist() == [4, 0]


def test_threshold_of_zero_raises():
    with pytest.raises(ValueError, match="threshold"):
        paste_masks(torch.ones(1, 2, 2), torch.ones(1, 4), (3, 3), threshold=0)


@pytest.mark.parametrize("side", [28, 56, 14, 40])
def test_inner_pixels_equal_torchvisions_paste(side):
    """torchvision resizes masks to boxes of integer size with inclusive ends, without a soft border."""
    mask = F.avg_pool2d(torch.rand(1, 1, 30, 30), 3, 1)[0]
    expected = paste_mask_in_image(mask[0], torch.tensor([3, 5, 3 + side - 1, 5 + side - 1]), 70, 70) >= 0.5
    got = paste_masks(mask, torch.tensor([[3.0, 5.0, 3.0 + side, 5.0 + side]]), (70, 70))[0]
    inner = (slice(5 + 2, 5 + side - 2), slice(3 + 2, 3 + side - 2))
    assert (got[inner] == expected[inner]).float().mean() > 0.999


@pytest.mark.parametrize("view", ["same_size", "resized"])
def test_masks_equal_detectron2(shared_dir, view):
    path = shared_dir / "fixtures/detectron2/panoptic_fpn_R_50/reference.pt"
    reference = torch.load(path, weights_only=True)[view]
    masks = reference["detections"]["pred_masks_28"]
    pasted = paste_masks(masks, reference["instances"]["pred_boxes"], tuple(reference["output_size"]))
    packed = np.packbits(pasted.flatten(1).numpy(), axis=1)
    differ = np.bitwise_count(packed ^ reference["instances"]["pred_masks_packed"].numpy()).sum()
    assert pasted.sum() > 50_000
    assert differ <= 3


@settings(max_examples=50, deadline=None)
@given(
    count=st.integers(0, 4),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    share=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    seed=st.integers(0, 99),
)
def test_runs_round_trip(count, size, share, seed):
    masks = torch.rand(count, *size, generator=torch.Generator().manual_seed(seed)) < share
    runs = dense_runs(masks)
    assert torch.equal(runs.dense(), masks)
    assert runs.areas().tolist() == masks.sum((1, 2)).tolist()
    # Sorted by mask and position, and not empty.
    position = runs.mask * size[0] * size[1] + runs.start
    assert bool((position.diff() > 0).all())
    assert bool((runs.end > runs.start).all())
    order = torch.randperm(count)[: max(count - 1, 0)]
    for chosen in (
        order,
        torch.cat([order, order.flip(0)]),
        order - count,
        slice(1, None),
        share < torch.rand(count),
    ):
        assert torch.equal(runs[chosen].dense(), masks[chosen])
        assert runs[chosen].areas().tolist() == masks[chosen].sum((1, 2)).tolist()


def test_pasted_runs_equal_the_runs_of_pasted_masks():
    masks = F.avg_pool2d(torch.rand(20, 1, 30, 30), 3, 1)[:, 0]
    corner = torch.rand(20, 2) * 40
    boxes = torch.cat([corner, corner + 5 + torch.rand(20, 2) * 30], 1)
    pasted = paste_runs(masks, boxes, (60, 50))
    assert bool((pasted.start // 50 == (pasted.end - 1) // 50).all())  # no run crosses the end of a row
    assert torch.equal(dense_runs(pasted.dense()).dense(), pasted.dense())
