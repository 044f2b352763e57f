"""From a data set to batches: augmented, grouped by aspect ratio, repeatable and divisible."""

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
    """What every reader of this package offers."""

    categories: Categories

    @property
    def sizes(self) -> list[tuple[int, int]]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Tensor, SegmentMap]: ...

    def name(self, index: int) -> tuple[int | str, str]: ...


class TrainingSet(Dataset):
    """Augmented pictures with targets; the randomness of each depends on (seed, epoch, index) alone.

    So a run that is resumed, or that has another number of processes or workers, sees the same pictures.

    Args:
        dataset: to read from.
        config: of the augmentation.
        seed: of the run.
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
        """The sample of `key` = (epoch, index)."""
        epoch, index = key
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed: without workers it would reseed the GPU's generator for the training.
            torch.default_generator.manual_seed(_mix(self.seed, epoch, index))
            image, segments = self.augment(*self.dataset[index])
        image_id, file_name = self.dataset.name(index)
        return image, segments.targets(self.dataset.categories.num_things, image_id, file_name)


class AspectRatioBatches(Sampler[list[tuple[int, int]]]):
    """An endless stream of batches of (epoch, index), landscape and portrait pictures apart.

    Every epoch is shuffled by (seed, epoch); pictures left over at its end go first in the next one, so
    that all batches are full. All processes see the same stream, each takes its own part of every batch.

    Args:
        sizes: (height, width) of each picture.
        batch_size: pictures per batch over all processes.
        seed: of the run.
        rank, world_size: of this process.
        start: batches to skip: a resumed run goes on where it was.
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
    """Samples -> images and targets; the model pads."""
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
    """Endless training batches of this process, as `collate` gives them; see `read_in_workers`.

    Args:
        dataset: to read from.
        augment: random changes.
        batch_size: number of images per batch over all processes.
        seed, rank, world_size, start: see `AspectRatioBatches`.
        workers: number of worker processes.
        pin_memory: for copies to a GPU.

    Raises:
        RefineError: an image or its annotations cannot be read, or a worker was lost.
    """
    batches = AspectRatioBatches(dataset.sizes, batch_size, seed, rank, world_size, start)
    return read_in_workers(TrainingSet(dataset, augment, seed), batches, collate, workers, pin_memory)


def _mix(seed: int, epoch: int, index: int) -> int:
    """One well-spread 63-bit seed from three numbers (splitmix64)."""
    value = 0
    for part in (seed, epoch, index):
        value = (value ^ (part & 0xFFFFFFFFFFFFFFFF)) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        value = (value ^ value >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        value ^= value >> 31
    return value >> 1
