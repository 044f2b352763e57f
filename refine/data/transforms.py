"""Random augmentation of an image together with its segment map."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from refine.data.config import AugmentConfig
from refine.data.resize import fit_scale, resize, resize_map
from refine.data.segments import InstanceMasks, SegmentMap

Sample = tuple[Tensor, SegmentMap]
"""Image, Tensor[3, H, W] uint8 RGB, and segment map of the same size."""


class Augment:
    """Random augmentation by `AugmentConfig`.

    It uses torch's global generator, so seeding that makes it reproducible.

    Args:
        config: probabilities and ranges of the changes.
        num_things: number of thing classes; classes below it are things.
        donor: returns another random sample for copy-paste, or None if that is disabled.
    """

    def __init__(self, config: AugmentConfig, num_things: int, donor: Callable[[], Sample] | None = None) -> None:
        self.config = config
        self.num_things = num_things
        self.donor = donor
        self.color: Callable[[Tensor], Tensor] | None = None
        if c := config.color:
            from torchvision.transforms.v2 import ColorJitter  # slow to import

            self.color = ColorJitter(c, c, c, c / 5)

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
    """Paste a random half of the donor's things over a sample.

    Only the visible parts of the donor's instances are pasted, and covered parts of the sample's instances are
    removed; targets omit instances of which nothing remains.

    Args:
        sample, donor: images and segment maps, of any sizes.
        num_things: number of thing classes; classes below it are things.
    """
    (image, segments), (donor_image, donor_segments) = sample, donor
    height, width = min(image.shape[1], donor_image.shape[1]), min(image.shape[2], donor_image.shape[2])
    index = donor_segments.index[:height, :width]
    things = torch.unique(index[index >= 0].long())
    things = things[(donor_segments.labels[things] < num_things) & ~donor_segments.iscrowd[things]]
    selected = things[torch.rand(len(things)) < 0.5]
    pasted = torch.isin(index, selected.to(index.dtype))
    image, new_index = image.clone(), segments.index.clone()
    image[:, :height, :width] = torch.where(pasted, donor_image[:, :height, :width], image[:, :height, :width])
    shifted = index + len(segments.labels)  # the donor's segments follow those of the sample
    new_index[:height, :width] = torch.where(pasted, shifted, new_index[:height, :width])
    instances = None
    if segments.instances is not None and donor_segments.instances is not None:
        instances = _paste_instances(segments, donor_segments, selected, pasted)
    return image, SegmentMap(
        new_index,
        torch.cat([segments.labels, donor_segments.labels]),
        torch.cat([segments.iscrowd, donor_segments.iscrowd]),
        instances,
    )


def _paste_instances(segments: SegmentMap, donor: SegmentMap, selected: Tensor, pasted: Tensor) -> InstanceMasks:
    old, new = segments.instances, donor.instances
    assert old is not None
    assert new is not None
    height, width = pasted.shape
    new = new[torch.isin(new.segment, selected)]
    remaining = old.masks.clone()
    remaining[:, :height, :width] &= ~pasted
    visible = donor.index[:height, :width] == new.segment[:, None, None]
    added = remaining.new_zeros(len(new.labels), *remaining.shape[1:])
    added[:, :height, :width] = visible
    return InstanceMasks(
        torch.cat([remaining, added]),
        torch.cat([old.labels, new.labels]),
        torch.cat([old.iscrowd, new.iscrowd]),
        torch.cat([old.segment, new.segment + len(segments.labels)]),
    )


def _chance(probability: float) -> bool:
    return probability > 0 and float(torch.rand(())) < probability
