"""Tests of semantic labels and confidences against plain interpolation and softmax."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from refine.ops import semantic
from refine.ops.semantic import Grid, semantic_map, semantic_probabilities


def reference(logits: Tensor, image_size: tuple[int, int], output_size: tuple[int, int], stride: int = 4) -> Tensor:
    """Compute full-size probabilities, Tensor[L, H, W] float64, as detectron2 does."""
    full = F.interpolate(logits[None].double(), scale_factor=stride, mode="bilinear", align_corners=False)
    full = full[:, :, : image_size[0], : image_size[1]]
    if image_size != output_size:
        full = F.interpolate(full, size=output_size, mode="bilinear", align_corners=False)
    return full[0].softmax(0)


def check(logits: Tensor, image_size: tuple[int, int], output_size: tuple[int, int], stride: int = 4) -> None:
    labels, confidence = semantic_map(logits, image_size, output_size, stride)
    expected = reference(logits, image_size, output_size, stride)
    best = expected.amax(0)
    assert labels.dtype == torch.int64
    assert tuple(labels.shape) == output_size
    # The label may differ from the best class only by rounding, between classes of almost equal probability.
    predicted = expected.gather(0, labels[None])[0]
    assert bool((predicted >= best * (1 - 1e-4)).all())
    torch.testing.assert_close(confidence.double(), best, atol=3e-5, rtol=0)
    probabilities = semantic_probabilities(logits, image_size, output_size, stride)
    torch.testing.assert_close(probabilities.double(), expected, atol=3e-5, rtol=0)


@settings(max_examples=25, deadline=None)
@given(
    classes=st.integers(1, 9),
    h=st.integers(1, 12),
    w=st.integers(1, 12),
    cut=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    spread=st.sampled_from([0.0, 0.1, 3.0, 30.0, 300.0]),
    seed=st.integers(0, 99),
)
def test_stride_four_equals_plain_interpolation(classes, h, w, cut, spread, seed):
    logits = torch.randn(classes, h, w, generator=torch.Generator().manual_seed(seed)) * spread
    size = (4 * h - cut[0], 4 * w - cut[1])
    check(logits, size, size)


@pytest.mark.parametrize("padding", [0, 7, 31])
def test_padding_is_cropped(padding):
    # The logits cover the padded input. Those outside the image are cropped, but contribute to interpolation
    # at its border, as in detectron2.
    size = (64 - padding, 96 - padding)
    check(torch.randn(5, 16, 24) * 3, size, size)


def test_blocks_of_a_gpu_give_the_same_map(monkeypatch):
    logits = torch.randn(3, 80, 150, generator=torch.Generator().manual_seed(0)) * 3
    size, output = (310, 600), (300, 590)
    expected = semantic_map(logits, size, output)
    monkeypatch.setattr(semantic, "CPU_LOGITS", semantic.GPU_LOGITS)
    for value, other in zip(semantic_map(logits, size, output), expected, strict=True):
        torch.testing.assert_close(value, other)


@pytest.mark.parametrize(
    ("output", "stride"), [((37, 90), 4), ((200, 130), 4), ((60, 90), 8), ((1, 1), 4), ((61, 90), 2)]
)
def test_other_sizes_and_strides(output, stride):
    check(torch.randn(6, 16, 24) * 3, (min(60, 16 * stride), min(90, 24 * stride)), output, stride)


@pytest.mark.parametrize("output", [(97, 139), (40, 61)])
def test_a_part_on_its_grid_equals_the_part_of_the_whole(output):
    logits, resized, begin = torch.randn(5, 16, 24) * 3, (61, 94), 16
    step = output[0] / resized[0], output[1] / resized[1]
    first = [int(begin * factor) for factor in step]  # pixel of the output in which the part begins
    size = (output[0] - first[0], output[1] - first[1])
    grid = Grid(step, (begin * step[0] - first[0], begin * step[1] - first[1]))
    part, image_size = logits[:, begin // 4 :, begin // 4 :], (resized[0] - begin, resized[1] - begin)
    expected = semantic_probabilities(logits, resized, output)[:, first[0] :, first[1] :]
    inner = slice(4, None), slice(4, None)  # beside its border the part lacks the logits before it
    probabilities = semantic_probabilities(part, image_size, size, grid=grid)
    torch.testing.assert_close(probabilities[:, *inner], expected[:, *inner], atol=3e-5, rtol=0)
    labels, confidence = semantic_map(part, image_size, size, grid=grid)
    torch.testing.assert_close(confidence, probabilities.amax(0), atol=3e-5, rtol=0)
    chosen = probabilities.gather(0, labels[None])[0]
    torch.testing.assert_close(chosen, probabilities.amax(0), atol=3e-5, rtol=0)


@pytest.mark.parametrize("size", [(33, 41), (64, 70)])
def test_ties_go_to_the_lowest_class(size):
    logits = torch.randn(1, 17, 18).repeat(4, 1, 1)
    for output in (size, (50, 20)):
        labels, confidence = semantic_map(logits, size, output)
        assert not labels.any()
        torch.testing.assert_close(confidence, torch.full(output, 0.25))


def test_certain_classes_give_certain_blocks():
    # One logit per 4 × 4 pixels; pixels away from the border between two certain classes are certain.
    logits = torch.full((3, 2, 2), -50.0)
    logits[1, :, 0] = logits[2, :, 1] = 50.0
    labels, confidence = semantic_map(logits, (8, 8), (8, 8))
    assert labels.tolist() == [[1, 1, 1, 1, 2, 2, 2, 2]] * 8
    assert bool((confidence > 0.999).all())


@pytest.mark.parametrize("view", ["same_size", "resized"])
@pytest.mark.parametrize("model", ["panoptic_fpn_R_50", "panoptic_fpn_R_50_dconv_cascade_gn"])
def test_labels_equal_detectron2(shared_dir, model, view):
    stored = torch.load(shared_dir / "fixtures/detectron2" / model / "reference.pt", weights_only=True)
    logits, expected = stored["same_size"]["sem_seg_logits_stride4"], stored[view]["sem_seg"]
    labels, _ = semantic_map(logits, (320, 480), tuple(stored[view]["output_size"]))
    # The stored logits are in half precision.
    assert (labels == expected).float().mean() > 0.998
