"""Training images of nuclei.py, and those held out to choose thresholds."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from refine.data.build import build_dataset
from refine.data.loader import PanopticDataset
from refine.data.segments import SegmentMap
from refine.files import read_json
from refine.structures import Categories
from refine.training.config import RunConfig

HELD_OUT = 16
"""One in this many originals of the training split is not used for training."""


@dataclass(frozen=True)
class Part:
    """Subset of a data set."""

    whole: PanopticDataset
    numbers: list[int]

    @property
    def categories(self) -> Categories:
        return self.whole.categories

    @property
    def sizes(self) -> list[tuple[int, int]]:
        sizes = self.whole.sizes
        return [sizes[n] for n in self.numbers]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> tuple[Tensor, SegmentMap]:
        return self.whole[self.numbers[index]]

    def name(self, index: int) -> tuple[int | str, str]:
        return self.whole.name(self.numbers[index])


def split(config: RunConfig) -> tuple[Part, Part]:
    """Split the training data into training and held-out images; tiles of one original stay together."""
    whole = build_dataset(config.data.train)
    groups = {image["id"]: image["group"] for image in read_json(str(config.data.train.json))["images"]}
    held = set(sorted(set(groups.values()))[::HELD_OUT])
    is_held = [groups[whole.name(n)[0]] in held for n in range(len(whole))]
    trained, held_out = (Part(whole, [n for n, h in enumerate(is_held) if h is side]) for side in (False, True))
    return trained, held_out
