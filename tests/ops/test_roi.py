"""Tests of ROI-Align and ROI-Flatten against slow references, and of their invariants."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import MultiScaleRoIAlign, roi_align

from refine.ops.roi import Sampling, align, assign_levels, roi_align_levels, roi_flatten, to_rois


def flatten_slowly(masks, rois, labels, scores, canvas_size, stride=4):
    """Evaluate equation 5 literally: one grid_sample per instance, then the maximum."""
    canvas = torch.zeros(canvas_size, dtype=masks.dtype)
    _, _, h, w = canvas_size
    u = (torch.arange(w) + 0.5) * stride
    v = (torch.arange(h) + 0.5) * stride
    for mask, (b, x1, y1, x2, y2), c, s in zip(masks, rois, labels, scores, strict=True):
        gx = 2 * (u - x1) / (x2 - x1).clamp(min=1) - 1
        gy = 2 * (v - y1) / (y2 - y1).clamp(min=1) - 1
        grid = torch.stack(torch.meshgrid(gy, gx, indexing="ij")[::-1], -1)[None].to(masks.dtype)
        value = s * F.grid_sample(mask[None, None], grid, align_corners=False, padding_mode="zeros")[0, 0]
        canvas[int(b), c] = torch.maximum(canvas[int(b), c], value)
    return canvas


def random_instances(n, batch=2, classes=3, size=(64, 96), bins=28, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=g) * torch.tensor([size[1] * 0.8, size[0] * 0.8]) - 4
    extent = torch.rand(n, 2, generator=g) * 40 + 0.2
    index = torch.randint(0, batch, (n, 1), generator=g)
    return (
        torch.rand(n, bins, bins, generator=g, dtype=dtype),
        torch.cat([index, corner, corner + extent], 1),
        torch.randint(0, classes, (n,), generator=g),
        torch.rand(n, generator=g, dtype=dtype),
        (batch, classes, size[0] // 4, size[1] // 4),
    )


@settings(max_examples=25, deadline=None)
@given(n=st.integers(0, 12), seed=st.integers(0, 999), bins=st.sampled_from([1, 7, 28]))
def test_flatten_equals_slow_reference(n, seed, bins):
    case = random_instances(n, bins=bins, seed=seed)
    torch.testing.assert_close(roi_flatten(*case), flatten_slowly(*case), atol=1e-5, rtol=1e-5)


def test_constant_mask_fills_its_box_with_score_times_value():
    # Box 16..48 × 8..24 at stride 4: the centres of canvas columns 4..11 and rows 2..5 lie inside. With 32 bins
    # each of them is at least half a bin from the border, so none is attenuated.
    rois = torch.tensor([[0, 16.0, 8.0, 48.0, 24.0]])
    canvas = roi_flatten(torch.full((1, 32, 32), 0.8), rois, torch.tensor([1]), torch.tensor([0.5]), (1, 2, 10, 16))
    expected = torch.zeros(1, 2, 10, 16)
    expected[0, 1, 2:6, 4:12] = 0.4
    torch.testing.assert_close(canvas, expected)


@pytest.mark.parametrize("aligned", [True, False])
@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(0, 9),
    seed=st.integers(0, 999),
    bins=st.sampled_from([1, 7, 14]),
    samples=st.integers(1, 3),
    size=st.sampled_from([(1, 1), (2, 9), (16, 24)]),
)
def test_align_equals_torchvision_in_channels_last_layout(aligned, n, seed, bins, samples, size):
    """Boxes may lie partly or fully outside, be empty or have swapped corners."""
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(2, 5, *size, generator=g, dtype=torch.float64).to(memory_format=torch.channels_last)
    boxes = torch.randn(n, 4, generator=g, dtype=torch.float64) * 60 + 30
    if seed % 2:
        boxes = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:].abs()], 1)
    rois = torch.cat([torch.randint(2, (n, 1), generator=g), boxes], 1)
    weight = torch.randn(n, 5, bins, bins, generator=g, dtype=torch.float64)
    results = []
    for function in (
        lambda x: align(x, rois, bins, Sampling(samples, aligned), 4),
        lambda x: roi_align(x.contiguous(), rois, bins, 0.25, samples, aligned=aligned),
    ):
        x = features.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        y = function(x)
        (y * weight).sum().backward()
        results.append((y.detach(), x.grad))
    torch.testing.assert_close(*results, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_box_coordinates_are_not_rounded_in_half_precision(dtype, layout):
    # The map is exact in half precision, so a difference could only come from rounded boxes.
    columns = torch.arange(320).float() % 2
    feature = columns.expand(1, 8, 8, 320).contiguous(memory_format=layout)
    rois = torch.tensor([[0.0, 1021, 3, 1045, 27], [0, 777.5, 5, 793.5, 21]])
    expected = align(feature, rois, 7, Sampling(2), 4)
    assert expected.std() > 0.1
    pooled = align(feature.to(dtype), rois, 7, Sampling(2), 4)
    assert pooled.dtype == dtype
    torch.testing.assert_close(pooled.float(), expected, atol=4e-3, rtol=0)
    with torch.autocast("cpu", dtype):
        torch.testing.assert_close(align(feature, rois, 7, Sampling(2), 4), expected)


def test_gradient_flows_only_to_the_maximum():
    rois = torch.tensor([[0, 0.0, 0.0, 32.0, 32.0], [0, 0.0, 0.0, 32.0, 32.0]])
    masks = torch.full((2, 8, 8), 0.6, requires_grad=True)
    canvas = roi_flatten(masks, rois, torch.tensor([0, 0]), torch.tensor([0.9, 0.5]), (1, 1, 8, 8))
    canvas.sum().backward()
    assert masks.grad[0].abs().sum() > 0
    assert masks.grad[1].abs().sum() == 0


def test_gradcheck():
    masks, rois, labels, scores, size = random_instances(4, bins=3, size=(16, 16), seed=3)
    masks.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda m: roi_flatten(m, rois, labels, scores, size), (masks,))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999))
def test_order_of_instances_does_not_matter(seed):
    masks, rois, labels, scores, size = random_instances(7, seed=seed)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(seed))
    shuffled = roi_flatten(masks[order], rois[order], labels[order], scores[order], size)
    assert torch.equal(roi_flatten(masks, rois, labels, scores, size), shuffled)


@pytest.mark.parametrize("reduce", ["max", "sum"])
def test_zero_instances_give_an_empty_canvas(reduce):
    masks, rois, labels, scores, size = random_instances(0)
    canvas = roi_flatten(masks, rois, labels, scores, size, reduce=reduce)
    assert canvas.shape == size
    assert canvas.abs().sum() == 0


def test_sum_is_clipped_at_one():
    rois = torch.tensor([[0, 0.0, 0.0, 32.0, 32.0]]).repeat(2, 1)
    masks = torch.full((2, 32, 32), 0.5)
    canvas = roi_flatten(masks, rois, torch.tensor([0, 0]), torch.tensor([0.6, 0.8]), (1, 1, 8, 8), reduce="sum")
    torch.testing.assert_close(canvas, torch.full((1, 1, 8, 8), 0.7))
    canvas = roi_flatten(
        masks * 2, rois, torch.tensor([0, 0]), torch.tensor([1.0, 1.0]), (1, 1, 8, 8), reduce="sum"
    )
    assert canvas.max() == 1


def test_align_inverts_flatten():
    # A smooth mask is recovered when it is painted and pooled at the same box.
    y, x = torch.meshgrid(torch.linspace(-1, 1, 28), torch.linspace(-1, 1, 28), indexing="ij")
    mask = torch.exp(-3 * (x**2 + y**2))[None]
    rois = torch.tensor([[0, 64.0, 32.0, 288.0, 256.0]])
    canvas = roi_flatten(mask, rois, torch.tensor([0]), torch.ones(1), (1, 1, 80, 80))
    back = align(canvas, rois, 28, Sampling(), 4)[:, 0]
    assert (back - mask)[:, 2:-2, 2:-2].abs().max() < 0.02


def test_levels_follow_the_fpn_rule_and_keep_the_order():
    boxes = torch.tensor([[0, 0, 224, 224], [0, 0, 112, 112], [0, 0, 10, 10], [0, 0, 900, 900.0]])
    assert assign_levels(boxes, 4).tolist() == [2, 1, 0, 3]
    features = [torch.full((1, 1, 256 // 2**n, 256 // 2**n), float(n)) for n in range(4)]
    rois = to_rois([boxes])
    assert roi_align_levels(features, rois, 2, Sampling())[:, 0, 0, 0].tolist() == [2, 1, 0, 3]
    assert roi_align_levels(features, rois, 2, Sampling(canonical_size=112))[:, 0, 0, 0].tolist() == [3, 2, 0, 3]


def test_levels_equal_torchvision_for_shifted_boxes():
    # torchvision's pooler lacks half-pixel alignment, so its boxes are shifted by half a feature pixel.
    features = {str(n): torch.rand(2, 3, 64 // 2**n, 64 // 2**n) for n in range(4)}
    pooler = MultiScaleRoIAlign(list(features), 7, 2)
    g = torch.Generator().manual_seed(1)
    boxes = [torch.rand(5, 4, generator=g) * 60 + torch.tensor([20, 20, 90, 90.0]) for _ in range(2)]
    rois = to_rois(boxes)
    got = roi_align_levels(list(features.values()), rois, 7, Sampling())
    level = assign_levels(rois[:, 1:], 4)
    half = 0.5 * 4 * 2.0**level
    shifted = [b - h[:, None] for b, h in zip(boxes, half.split([5, 5]), strict=True)]
    expected = pooler(features, shifted, [(256, 256)] * 2)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
