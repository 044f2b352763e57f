"""Tests that augmentation moves images, maps and instance masks together."""

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as torchvision_functional
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from refine.data.config import AugmentConfig
from refine.data.resize import fit_scale, resize, resize_for_test, resize_map
from refine.data.segments import InstanceMasks, SegmentMap
from refine.data.transforms import (
    Augment,
    Sample,
    copy_paste,
)
from refine.structures import VOID

THINGS = 2  # classes 0 and 1 are things, 2 and 3 stuff


def _sample(index: Tensor, labels: list[int], crowd: tuple[int, ...] = (), seed: int = 0) -> Sample:
    """Return an image that encodes segments in red (20, 40, …, void 0) and the sample in green."""
    index = index.int()
    red = (index + 1) * 20
    image = torch.stack([red, torch.full_like(red, seed), red]).to(torch.uint8)
    iscrowd = torch.tensor([k in crowd for k in range(len(labels))])
    return image, SegmentMap(index, torch.tensor(labels), iscrowd)


def _with_instances(sample: Sample) -> Sample:
    """Add instances equal to their segments, and one that is hidden behind everything."""
    image, segments = sample
    things = torch.nonzero(segments.labels < THINGS).squeeze(1)
    masks = segments.index[None] == things[:, None, None]
    hidden = torch.zeros_like(masks[:1])
    hidden[0, :3, :3] = True
    segments.instances = InstanceMasks(
        torch.cat([masks, hidden]),
        torch.cat([segments.labels[things], torch.tensor([0])]),
        torch.cat([segments.iscrowd[things], torch.tensor([False])]),
        torch.cat([things, torch.tensor([-1])]),
    )
    return image, segments


def _quilt(height: int, width: int, cell: int) -> Tensor:
    """Return numbered squares of `cell` pixels side; the last is void: Tensor[H, W]."""
    rows, columns = torch.meshgrid(torch.arange(height) // cell, torch.arange(width) // cell, indexing="ij")
    index = rows * (int(columns.max()) + 1) + columns
    return torch.where(index == index.max(), -1, index)


def _boxes_of(masks: Tensor) -> list[list[int]]:
    boxes = []
    for mask in masks.numpy():
        ys, xs = np.nonzero(mask)
        boxes.append([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
    return boxes


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 1000),
    factor=st.integers(1, 3),
    crop=st.none() | st.tuples(st.integers(3, 40), st.integers(3, 40)),
    size=st.sampled_from([(8, 12), (12, 8), (10, 10)]),
    instances=st.booleans(),
)
def test_image_and_map_stay_aligned_per_pixel(
    seed: int, factor: int, crop: tuple[int, int] | None, size: tuple[int, int], instances: bool
) -> None:
    """Under integer scaling, pixels inside a cell keep their colour; flips and crops keep all colours."""
    index = _quilt(*size, cell=4)
    labels = [n % 4 for n in range(int(index.max()) + 1)]
    sample = _sample(index, labels)
    if instances:
        sample = _with_instances(sample)
    crop = crop and (max(crop[0], 2 * factor + 1), max(crop[1], 2 * factor + 1))
    config = AugmentConfig(
        short=[factor * min(size)], long=1000, flip=0.5, flip_vertical=0.5, rotate=0.5, crop=crop, min_area=0
    )
    torch.manual_seed(seed)
    image, segments = Augment(config, THINGS)(*sample)
    assert image.shape[1:] == segments.index.shape
    assert image.is_contiguous()
    shown = (segments.index + 1) * 20
    # Interpolation mixes two colours within one source pixel of a border between cells (or of the crop).
    inner = torch.ones_like(shown, dtype=torch.bool)
    if factor > 1:
        near = shown.unfold(0, 2 * factor + 1, 1).unfold(1, 2 * factor + 1, 1).flatten(2)
        inner[:] = False
        inner[factor:-factor, factor:-factor] = near.amin(2) == near.amax(2)
    assert (image[0][inner] == shown[inner]).all()
    targets = segments.targets(THINGS, 0, "")
    assert targets.boxes.tolist() == _boxes_of(targets.masks)
    if instances:
        kept = segments.instances
        assert kept is not None
        for mask, segment in zip(kept.masks, kept.segment.tolist(), strict=True):
            if segment >= 0:
                assert torch.equal(mask, segments.index == segment)
    else:
        assert (targets.masks.sum(0) <= 1).all()
    assert torch.equal(targets.sem_seg == VOID, segments.index == -1)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"flip": 1.0}, [[2, 1, 0], [5, 4, 3]]),
        ({"flip_vertical": 1.0}, [[3, 4, 5], [0, 1, 2]]),
        ({"rotate": 1.0}, [[2, 5], [1, 4], [0, 3]]),
        ({"flip": 1.0, "rotate": 1.0}, [[0, 3], [1, 4], [2, 5]]),
        ({}, [[0, 1, 2], [3, 4, 5]]),
    ],
)
def test_each_geometric_change(change: dict, expected: list[list[int]]) -> None:
    index = torch.arange(6).view(2, 3)
    config = AugmentConfig(**({"flip": 0.0, "short": [2], "min_area": 0} | change))
    image, segments = Augment(config, THINGS)(*_sample(index, [0, 1, 2, 3, 0, 1]))
    assert segments.index.tolist() == expected
    assert (image[0] // 20 - 1).tolist() == expected


def test_crops_cover_all_positions_inside_the_image() -> None:
    index = torch.arange(20).view(4, 5) % 6
    config = AugmentConfig(flip=0.0, short=[4], crop=(3, 9), min_area=0)
    augment = Augment(config, THINGS)
    seen = set()
    for _ in range(30):
        image, segments = augment(*_sample(index, [2] * 6))
        assert image.shape == (3, 3, 5)  # the width is smaller than the crop
        seen.add(int(segments.index[0, 0]))
    assert seen == {0, 5}


@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(1, 3000), width=st.integers(1, 3000), short=st.integers(1, 1000), more=st.integers(0, 1000)
)
def test_scale_fits_the_short_side_unless_the_long_side_is_too_long(
    height: int, width: int, short: int, more: int
) -> None:
    scale = fit_scale((height, width), short, short + more)
    sides = sorted((height * scale, width * scale))
    assert sides[1] <= short + more + 1e-6
    assert sides[0] == pytest.approx(short) or sides[1] == pytest.approx(short + more)


def test_sizes_of_training_and_test() -> None:
    assert resize_for_test(torch.zeros(3, 480, 640, dtype=torch.uint8), 800, 1333).shape == (3, 800, 1067)
    assert resize_for_test(torch.zeros(3, 100, 1000, dtype=torch.uint8), 800, 1333).shape == (3, 133, 1333)
    assert resize_for_test(torch.zeros(3, 1, 1000, dtype=torch.uint8), 80, 100).shape == (3, 1, 100)
    config = AugmentConfig(short=[16, 24], long=100, jitter=(0.5, 2.0), flip=0.0)
    augment = Augment(config, THINGS)
    shorts = {augment(*_sample(_quilt(8, 12, 4), [2] * 5))[0].shape[1] for _ in range(60)}
    assert min(shorts) >= 8
    assert max(shorts) <= 48
    assert len(shorts) > 10


def test_maps_are_resized_to_nearest_pixel_centres() -> None:
    index = torch.tensor([[[0, 70000], [5, -1]]], dtype=torch.int32)
    assert resize_map(index, (4, 4))[0].tolist() == [
        [0, 0, 70000, 70000],
        [0, 0, 70000, 70000],
        [5, 5, -1, -1],
        [5, 5, -1, -1],
    ]
    assert resize_map(torch.arange(5, dtype=torch.int32).view(1, 1, 5), (1, 3)).tolist() == [[[0, 2, 4]]]
    large = torch.tensor([[[(1 << 24) - 1, 1]]], dtype=torch.int32)
    assert resize_map(large, (1, 4)).tolist() == [[[(1 << 24) - 1] * 2 + [1] * 2]]
    assert resize_map(torch.zeros(0, 4, 4, dtype=torch.uint8), (2, 2)).shape == (0, 2, 2)


@pytest.mark.parametrize("size", [(20, 31), (80, 55), (47, 31), (9, 70)])
@pytest.mark.parametrize("layout", ["planes", "pixels"])
def test_resizing_equals_torchvision(size: tuple[int, int], layout: str) -> None:
    image = torch.randint(256, (3, 47, 31), dtype=torch.uint8)
    if layout == "pixels":  # as decoders return it
        image = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    resized, expected = resize(image, size), torchvision_functional.resize(image, list(size), antialias=True)
    assert torch.equal(resized, expected)
    assert resized.stride() == expected.stride()
    maps = image.int() * 1000
    expected = torchvision_functional.resize(
        maps, list(size), interpolation=torchvision_functional.InterpolationMode.NEAREST_EXACT
    )
    assert torch.equal(resize_map(maps, size), expected)


@pytest.mark.parametrize("length", [33, 13])
def test_resized_images_and_maps_are_not_shifted(length: int) -> None:
    """Over many bars, the centres of mass of bilinear images and nearest maps agree on average."""
    positions = torch.arange(length) + 0.5
    shifts = []
    for left in range(2, 9):
        for right in range(12, 19):
            index = torch.zeros(1, 20)
            index[0, left:right] = 1
            image, segments = _sample(index, [2, 0])
            weight = resize(image, (1, length))[0, 0].float() / 20 - 1
            mask = resize_map(segments.index[None], (1, length))[0, 0].float()
            shifts.append(float((weight * positions).sum() / weight.sum() - (mask * positions).sum() / mask.sum()))
    assert np.mean(shifts) == pytest.approx(0, abs=0.06)


def test_small_things_become_void_and_small_stuff_is_kept() -> None:
    index = torch.tensor([[0, 1, 1, 2, 3, 3]])
    _, segments = _sample(index, [0, 1, 2, 3])
    assert segments.without_small_things(THINGS, 2).index.tolist() == [[-1, 1, 1, 2, 3, 3]]
    assert segments.without_small_things(THINGS, 1).index.tolist() == index.tolist()
    _, segments = _with_instances(_sample(index, [0, 1, 2, 3]))
    kept = segments.without_small_things(THINGS, 2)
    assert kept.index.tolist() == index.tolist()
    assert kept.instances is not None
    assert kept.instances.segment.tolist() == [1, -1]
    targets = kept.targets(THINGS, 0, "")
    assert targets.owner.tolist() == [[-1, 0, 0, -1, -1, -1]]


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), sizes=st.tuples(*[st.integers(4, 9)] * 4), instances=st.booleans())
def test_pasted_things_cover_the_image(seed: int, sizes: tuple[int, int, int, int], instances: bool) -> None:
    torch.manual_seed(seed)
    sample = _sample(torch.randint(-1, 4, sizes[:2]), [0, 2, 1, 3])
    donor = _sample(torch.randint(-1, 4, sizes[2:]), [1, 3, 0, 0], crowd=(3,), seed=9)
    if instances:
        sample, donor = _with_instances(sample), _with_instances(donor)
    before = (sample[0].clone(), sample[1].index.clone())
    image, segments = copy_paste(sample, donor, THINGS)
    assert torch.equal(sample[0], before[0])
    assert torch.equal(sample[1].index, before[1])
    assert segments.labels.tolist() == [0, 2, 1, 3, 1, 3, 0, 0]
    pasted = image[1] == 9
    assert torch.equal(pasted, segments.index >= 4)
    # Colours and map come from the donor where pasted, from the image elsewhere.
    assert torch.equal(segments.index[~pasted], before[1][~pasted])
    assert torch.equal(image[:, ~pasted], before[0][:, ~pasted])
    rows, columns = torch.nonzero(pasted, as_tuple=True)
    assert torch.equal(segments.index[pasted] - 4, donor[1].index[rows, columns])
    assert torch.equal(image[:, pasted], donor[0][:, rows, columns])
    # Only complete things are pasted, no stuff and no crowds.
    height, width = min(sizes[0], sizes[2]), min(sizes[1], sizes[3])
    added = segments.index[segments.index >= 4].unique().tolist()
    assert set(added) <= {4, 6}
    for k in added:
        assert torch.equal((segments.index == k)[:height, :width], (donor[1].index == k - 4)[:height, :width])
    targets = segments.targets(THINGS, 0, "")
    assert targets.boxes.tolist() == _boxes_of(targets.masks)
    if instances:
        assert segments.instances is not None
        for mask, segment in zip(segments.instances.masks, segments.instances.segment.tolist(), strict=True):
            if segment >= 0:
                assert torch.equal(mask, segments.index == segment)
            else:
                assert not (mask & pasted).any()  # the hidden instance is covered too


def test_copy_paste_probability_and_augmentation_of_the_donor() -> None:
    donor = _sample(torch.zeros(4, 4), [0], seed=9)
    config = AugmentConfig(copy_paste=0.5, short=[8], flip=0.0)
    augment = Augment(config, THINGS, donor=lambda: donor)
    pasted = [int((augment(*_sample(torch.zeros(4, 4), [2]))[0][1] == 9).sum()) for _ in range(400)]
    assert set(pasted) == {0, 64}  # the donor's only thing is pasted half the time, enlarged like the image
    assert 60 <= sum(p > 0 for p in pasted) <= 140


def test_colour_changes_affect_only_the_image() -> None:
    sample = _sample(_quilt(8, 8, 4), [0, 1, 2])
    config = AugmentConfig(short=[8], flip=0.0, color=0.5, min_area=0)
    image, segments = Augment(config, THINGS)(*sample)
    assert image.dtype == torch.uint8
    assert not torch.equal(image, sample[0])
    assert torch.equal(segments.index, sample[1].index)
    assert torch.equal(Augment(AugmentConfig(short=[8], flip=0.0), THINGS)(*sample)[0], sample[0])
