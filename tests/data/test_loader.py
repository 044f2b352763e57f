"""Tests of batches: grouping by aspect ratio, epochs, reproducibility, splitting and resuming."""

from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.drawn_data import IDS, SEGMENTS, write_coco
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from refine.data.coco_panoptic import CocoPanoptic
from refine.data.config import AugmentConfig
from refine.data.loader import AspectRatioBatches, TrainingSet, training_batches
from refine.structures import Targets

SIZES = [(4, 6), (6, 4), (5, 5)]
AUGMENT = AugmentConfig(copy_paste=0.5, short=[8, 12, 16], flip=0.5, rotate=0.5, crop=(8, 8), color=0.3, min_area=0)


def dataset(tmp_path: Path, count: int = 7) -> CocoPanoptic:
    files = write_coco(tmp_path, [np.tile(IDS, (1 + n % 3, 1)) for n in range(count)], [[]] * count)
    for annotation in files.content["annotations"]:
        annotation["segments_info"] = [dict(info) for info in SEGMENTS]
    files.save()
    return CocoPanoptic(files.images, files.json, files.segments)


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.sampled_from(SIZES), min_size=1, max_size=20),
    batch=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_batches_are_full_and_of_one_orientation_and_epochs_are_complete(
    sizes: list[tuple[int, int]], batch: int, seed: int
) -> None:
    landscape = [width >= height for height, width in sizes]
    batches = list(islice(AspectRatioBatches(sizes, batch, seed), 30))
    assert all(len(b) == batch for b in batches)
    for b in batches:
        assert len({landscape[index] for _, index in b}) == 1
    keys = [key for b in batches for key in b]
    assert len(set(keys)) == len(keys)  # no image twice in an epoch
    # Of earlier epochs, at most batch - 1 images per orientation are still waiting for a full batch.
    epochs = max(epoch for epoch, _ in keys)
    expected = {(epoch, index) for epoch in range(epochs) for index in range(len(sizes))}
    for side in (True, False):
        missing = [key for key in expected - set(keys) if landscape[key[1]] == side]
        assert len(missing) < batch
    assert batches == list(islice(AspectRatioBatches(sizes, batch, seed), 30))
    assert batches[11:] == list(islice(AspectRatioBatches(sizes, batch, seed, start=11), 19))


def test_epochs_are_shuffled_differently() -> None:
    keys = [key for b in islice(AspectRatioBatches([(4, 6)] * 50, 10, 0), 10) for key in b]
    first, second = ([index for e, index in keys if e == epoch] for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    other = [index for b in islice(AspectRatioBatches([(4, 6)] * 50, 10, 1), 5) for _, index in b]
    assert other != first


def test_processes_share_each_batch() -> None:
    sizes = SIZES * 7
    whole = list(islice(AspectRatioBatches(sizes, 6, 3), 9))
    for world in (2, 3, 6):
        parts = [list(islice(AspectRatioBatches(sizes, 6, 3, rank, world), 9)) for rank in range(world)]
        assert [list(chain(*batch)) for batch in zip(*parts, strict=True)] == whole
    with pytest.raises(ValueError, match="batch_size 6 is not divisible by 4 processes"):
        AspectRatioBatches(sizes, 6, 0, 0, 4)


def _same(a: tuple[list[Tensor], list[Targets]], b: tuple[list[Tensor], list[Targets]]) -> bool:
    pairs = zip(a[1], b[1], strict=True)
    return all(map(torch.equal, a[0], b[0])) and all(
        torch.equal(x.sem_seg, y.sem_seg) and torch.equal(x.masks, y.masks) and x.image_id == y.image_id
        for x, y in pairs
    )


def test_a_sample_depends_only_on_seed_epoch_and_index(tmp_path: Path) -> None:
    training = TrainingSet(dataset(tmp_path), AUGMENT, 5)
    state = torch.get_rng_state()
    image, targets = training[2, 3]
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is unchanged
    training[0, 1]
    torch.rand(7)
    again, _ = training[2, 3]
    assert torch.equal(image, again)
    assert (targets.image_id, targets.file_name) == (13, "3.png")
    others = [training[3, 3][0], training[2, 0][0], TrainingSet(training.dataset, AUGMENT, 6)[2, 3][0]]
    assert not any(o.shape == image.shape and torch.equal(o, image) for o in others)


def test_workers_and_resumed_runs_see_the_same_images(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    alone = list(islice(training_batches(data, AUGMENT, 2, seed=1), 5))
    workers = list(islice(training_batches(data, AUGMENT, 2, seed=1, workers=2), 5))
    assert all(map(_same, alone, workers))
    resumed = list(islice(training_batches(data, AUGMENT, 2, seed=1, workers=1, start=3), 2))
    assert all(map(_same, alone[3:], resumed))
    parts = [list(islice(training_batches(data, AUGMENT, 2, seed=1, rank=r, world_size=2), 5)) for r in (0, 1)]
    for whole, first, second in zip(alone, *parts, strict=True):
        assert _same(whole, (first[0] + second[0], first[1] + second[1]))
    images, targets = alone[0]
    assert [tuple(image.shape[1:]) for image in images] == [t.size for t in targets]
    assert all(image.dtype == torch.uint8 for image in images)
