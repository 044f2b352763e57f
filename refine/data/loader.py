"""Training batches: augmented, grouped by aspect ratio, reproducible and split over processes."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from refine.data.config import AugmentConfig
from refine.data.segments import SegmentMap
from refine.data.transforms import Augment
from refine.data.workers import read_in_workers
from refine.structures import Categories, Targets


class PanopticDataset(Protocol):
    """Interface of all data set readers of this package."""

    categories: Categories

    @property
    def sizes(self) -> list[tuple[int, int]]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Tensor, SegmentMap]: ...

    def name(self, index: int) -> tuple[int | str, str]: ...


class TrainingSet(Dataset):
    """Augmented images with targets, whose randomness depends only on (seed, epoch, index).

    A resumed run, or one with another number of processes or workers, therefore sees the same images.

    Args:
        dataset: data set to read from.
        config: augmentation of the images.
        seed: seed of the run.
    """

    def __init__(self, dataset: PanopticDataset, config: AugmentConfig, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        self.augment = Augment(config, dataset.categories.num_things, self._donor if config.copy_paste else None)

    def _donor(self) -> tuple[Tensor, SegmentMap]:
        return self.dataset[int(torch.randint(len(self.dataset), ()))]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Targets]:
        """Return image and targets of `key` = (epoch, index)."""
        epoch, index = key
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which without workers would also reseed the GPU generator of the training.
            torch.default_generator.manual_seed(_mix(self.seed, epoch, index))
            image, segments = self.augment(*self.dataset[index])
        image_id, file_name = self.dataset.name(index)
        return image, segments.targets(self.dataset.categories.num_things, image_id, file_name)


class AspectRatioBatches(Sampler[list[tuple[int, int]]]):
    """Endless stream of batches of (epoch, index), each of only landscape or only portrait images.

    Every epoch is shuffled by (seed, epoch); images left over at its end come first in the next one, so
    that all batches are full. All processes see the same stream, and each takes its own part of every batch.

    Args:
        sizes: (height, width) of each image.
        batch_size: global batch size, over all processes.
        seed: seed of the run.
        rank, world_size: index of this process and number of processes.
        start: number of batches to skip when a run is resumed.

    Raises:
        ValueError: the batch size is not divisible by the number of processes.
    """

    def __init__(
        self,
        sizes: Sequence[tuple[int, int]],
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
    ) -> None:
        if batch_size % world_size:
            raise ValueError(f"batch_size {batch_size} is not divisible by {world_size} processes")
        self.landscape = [width >= height for height, width in sizes]
        self.batch_size = batch_size
        self.seed = seed
        self.rank, self.world_size = rank, world_size
        self.start = start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        share = self.batch_size // self.world_size
        for number, batch in enumerate(self._batches()):
            if number >= self.start:
                yield batch[self.rank * share : (self.rank + 1) * share]

    def _batches(self) -> Iterator[list[tuple[int, int]]]:
        waiting: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        epoch = 0
        while True:
            generator = torch.Generator().manual_seed(_mix(self.seed, epoch, -1))
            for index in torch.randperm(len(self.landscape), generator=generator).tolist():
                group = waiting[self.landscape[index]]
                group.append((epoch, index))
                if len(group) == self.batch_size:
                    yield list(group)
                    group.clear()
            epoch += 1


def collate(samples: Sequence[tuple[Tensor, Targets]]) -> tuple[list[Tensor], list[Targets]]:
    """Join samples to a list of images and a list of targets; the model pads the images."""
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)


def training_batches(
    dataset: PanopticDataset,
    augment: AugmentConfig,
    batch_size: int,
    *,
    seed: int = 0,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    start: int = 0,
    pin_memory: bool = False,
) -> Generator[tuple[list[Tensor], list[Targets]], None, None]:
    """Yield endless training batches of this process, as returned by `collate`; see `read_in_workers`.

    Args:
        dataset: data set to read from.
        augment: augmentation of the images.
        batch_size: global batch size, over all processes.
        seed, rank, world_size, start: as in `AspectRatioBatches`.
        workers: number of worker processes.
        pin_memory: whether to return tensors in page-locked memory, for copies to a GPU.

    Raises:
        RefineError: an image or its annotations cannot be read, or a worker was lost.
    """
    batches = AspectRatioBatches(dataset.sizes, batch_size, seed, rank, world_size, start)
    return read_in_workers(TrainingSet(dataset, augment, seed), batches, collate, workers, pin_memory)


def _mix(seed: int, epoch: int, index: int) -> int:
    """Mix three integers to one 63-bit seed (splitmix64)."""
    value = 0
    for part in (seed, epoch, index):
        value = (value ^ (part & 0xFFFFFFFFFFFFFFFF)) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        value = (value ^ value >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        value ^= value >> 31
    return value >> 1
