"""Random changes of a picture and its segment map together."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torchvision.transforms.v2 as T
import torchvision.transforms.v2.functional as F
from torch import Tensor

from refine.data.config import AugmentConfig
from refine.data.segments import SegmentMap

Sample = tuple[Tensor, SegmentMap]
"""Tensor[3, H, W] uint8 RGB and the map of the same size."""


class Augment:
    """The random changes of `AugmentConfig`.

    They draw from torch's global generator, so that seeding it makes them repeat.

    Args:
        config: which, and how strong.
        num_things: classes below this are things.
        donor: draws another sample for copy-paste; None where that is off.
    """

    def __init__(self, config: AugmentConfig, num_things: int, donor: Callable[[], Sample] | None = None) -> None:
        self.config = config
        self.num_things = num_things
        self.donor = donor
        c = config.color
        self.color = T.ColorJitter(c, c, c, c / 5) if c else None

    def __call__(self, image: Tensor, segments: SegmentMap) -> Sample:
        config = self.config
        image, segments = self._geometry(image, segments)
        if config.copy_paste and self.donor is not None and _chance(config.copy_paste):
            image, segments = copy_paste((image, segments), self._geometry(*self.donor()), self.num_things)
        if self.color is not None:
            image = self.color(image)
        return image.contiguous(), segments.without_small_things(self.num_things, config.min_area)

    def _geometry(self, image: Tensor, segments: SegmentMap) -> Sample:
        config = self.config
        short = config.short[int(torch.randint(len(config.short), ()))]
        low, high = config.jitter
        factor = low + (high - low) * float(torch.rand(()))
        scale = factor * fit_scale((image.shape[1], image.shape[2]), short, config.long)
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[2] * scale)))
        # Crop before resizing would be cheaper still, but this keeps the crop's size exact.
        image, index = resize(image, size), resize_map(segments.index, size)
        if config.crop is not None:
            height, width = min(config.crop[0], size[0]), min(config.crop[1], size[1])
            top = int(torch.randint(size[0] - height + 1, ()))
            left = int(torch.randint(size[1] - width + 1, ()))
            image = image[:, top : top + height, left : left + width]
            index = index[top : top + height, left : left + width]
        if _chance(config.flip):
            image, index = image.flip(-1), index.flip(-1)
        if _chance(config.flip_vertical):
            image, index = image.flip(-2), index.flip(-2)
        if _chance(config.rotate):
            image, index = image.rot90(1, (-2, -1)), index.rot90(1, (-2, -1))
        return image, segments.with_index(index.contiguous())


def copy_paste(sample: Sample, donor: Sample, num_things: int) -> Sample:
    """Lay a random half of the donor's things over a sample; what they cover is covered."""
    (image, segments), (other, theirs) = sample, donor
    height, width = min(image.shape[1], other.shape[1]), min(image.shape[2], other.shape[2])
    index = theirs.index[:height, :width]
    things = torch.unique(index[index >= 0].long())
    things = things[(theirs.labels[things] < num_things) & ~theirs.iscrowd[things]]
    chosen = things[torch.rand(len(things)) < 0.5]
    pasted = torch.isin(index, chosen.to(index.dtype))
    image, new_index = image.clone(), segments.index.clone()
    image[:, :height, :width] = torch.where(pasted, other[:, :height, :width], image[:, :height, :width])
    shifted = index + len(segments.labels)  # their ids come after ours
    new_index[:height, :width] = torch.where(pasted, shifted, new_index[:height, :width])
    return image, SegmentMap(
        new_index, torch.cat([segments.labels, theirs.labels]), torch.cat([segments.iscrowd, theirs.iscrowd])
    )


def fit_scale(size: tuple[int, int], short: int, long: int) -> float:
    """Factor that makes the short side `short`, unless the long side would then exceed `long`."""
    return min(short / min(size), long / max(size))


def resize_for_test(image: Tensor, short: int, long: int) -> Tensor:
    """Tensor[3, H, W] uint8 -> the same with its short side `short`, at most `long` on the other."""
    scale = fit_scale((image.shape[1], image.shape[2]), short, long)
    return resize(image, (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[2] * scale))))


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, antialiased: Tensor[3, H, W] uint8 -> Tensor[3, *size] uint8."""
    return F.resize(image, list(size), antialias=True)


def resize_map(index: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearest: Tensor[H, W] integer -> Tensor[size]."""
    return F.resize(index[None], list(size), interpolation=T.InterpolationMode.NEAREST)[0]


def _chance(probability: float) -> bool:
    return probability > 0 and float(torch.rand(())) < probability
