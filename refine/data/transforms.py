"""Random changes of a picture and its segment map together."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torchvision.transforms.v2 as T
import torchvision.transforms.v2.functional as F
from torch import Tensor

from refine.data.config import AugmentConfig
from refine.data.segments import InstanceMasks, SegmentMap

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
        image = resize(image, size)
        segments = segments.moved(lambda maps: resize_map(maps, size))
        moves: list[Callable[[Tensor], Tensor]] = []
        if config.crop is not None:
            height, width = min(config.crop[0], size[0]), min(config.crop[1], size[1])
            top = int(torch.randint(size[0] - height + 1, ()))
            left = int(torch.randint(size[1] - width + 1, ()))
            moves.append(lambda maps: maps[..., top : top + height, left : left + width])
        if _chance(config.flip):
            moves.append(lambda maps: maps.flip(-1))
        if _chance(config.flip_vertical):
            moves.append(lambda maps: maps.flip(-2))
        if _chance(config.rotate):
            moves.append(lambda maps: maps.rot90(1, (-2, -1)))

        def move(maps: Tensor) -> Tensor:
            for step in moves:
                maps = step(maps)
            return maps.contiguous()

        return move(image), segments.moved(move)


def copy_paste(sample: Sample, donor: Sample, num_things: int) -> Sample:
    """Lay a random half of the donor's things over a sample; what they cover is covered.

    Only the visible parts of instances travel, and of the sample's instances only those parts stay that are
    not covered; what nothing is left of vanishes from the targets.
    """
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
    instances = None
    if segments.instances is not None and theirs.instances is not None:
        instances = _paste_instances(segments, theirs, chosen, pasted)
    return image, SegmentMap(
        new_index,
        torch.cat([segments.labels, theirs.labels]),
        torch.cat([segments.iscrowd, theirs.iscrowd]),
        instances,
    )


def _paste_instances(segments: SegmentMap, theirs: SegmentMap, chosen: Tensor, pasted: Tensor) -> InstanceMasks:
    ours, new = segments.instances, theirs.instances
    assert ours is not None
    assert new is not None
    height, width = pasted.shape
    new = new[torch.isin(new.segment, chosen)]
    covered = ours.masks.clone()
    covered[:, :height, :width] &= ~pasted
    visible = theirs.index[:height, :width] == new.segment[:, None, None]
    arrived = covered.new_zeros(len(new.labels), *covered.shape[1:])
    arrived[:, :height, :width] = visible
    return InstanceMasks(
        torch.cat([covered, arrived]),
        torch.cat([ours.labels, new.labels]),
        torch.cat([ours.iscrowd, new.iscrowd]),
        torch.cat([ours.segment, new.segment + len(segments.labels)]),
    )


def fit_scale(size: tuple[int, int], short: int, long: int) -> float:
    """Factor that makes the short side `short`, unless the long side would then exceed `long`."""
    return min(short / min(size), long / max(size))


def network_size(size: tuple[int, int], short: int, long: int) -> tuple[int, int]:
    """(height, width) that an image of `size` (height, width) has for the network at test, in pixels."""
    scale = fit_scale(size, short, long)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def resize_for_test(image: Tensor, short: int, long: int) -> Tensor:
    """Tensor[3, H, W] uint8 -> the same with its short side `short`, at most `long` on the other."""
    return resize(image, network_size((image.shape[1], image.shape[2]), short, long))


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, antialiased: Tensor[3, H, W] uint8 -> Tensor[3, *size] uint8."""
    return F.resize(image, list(size), antialias=True)


def resize_map(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearest, by pixel centres: Tensor[N, H, W] integer below 2^24 -> Tensor[N, *size]."""
    return F.resize(maps, list(size), interpolation=T.InterpolationMode.NEAREST_EXACT)


def _chance(probability: float) -> bool:
    return probability > 0 and float(torch.rand(())) < probability
