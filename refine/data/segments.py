"""Annotation of an image as a segment map, which is augmented and from which targets are derived."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from refine.structures import VOID, Targets
from refine.structures.targets import mask_boxes


@dataclass
class InstanceMasks:
    """M instances whose masks may overlap, from instance annotations.

    Attributes:
        masks: Tensor[M, H, W] bool.
        labels: Tensor[M] int64, contiguous thing class of each instance.
        iscrowd: Tensor[M] bool, whether each instance is a crowd.
        segment: Tensor[M] int64, segment of the map that shows each instance, -1 = none.
    """

    masks: Tensor
    labels: Tensor
    iscrowd: Tensor
    segment: Tensor

    def __getitem__(self, keep: Tensor) -> InstanceMasks:
        """Select instances by a mask, Tensor[M] bool."""
        return InstanceMasks(self.masks[keep], self.labels[keep], self.iscrowd[keep], self.segment[keep])


@dataclass
class SegmentMap:
    """Segment of each pixel of an image.

    Attributes:
        index: Tensor[H, W] int32, segment of each pixel, 0..S-1, -1 = void.
        labels: Tensor[S] int64, contiguous class of each segment; the number of classes for unnamed stuff.
        iscrowd: Tensor[S] bool, whether each segment is a crowd.
        instances: masks that replace the map as the source of boxes, labels and masks of the targets, or None.
    """

    index: Tensor
    labels: Tensor
    iscrowd: Tensor
    instances: InstanceMasks | None = None

    def moved(self, move: Callable[[Tensor], Tensor]) -> SegmentMap:
        """Return the annotation after a geometric transform.

        Args:
            move: transform of integers, Tensor[..., H, W], that selects pixels and does not interpolate.
        """
        instances = self.instances
        if instances is not None:
            instances = replace(instances, masks=move(instances.masks.to(torch.uint8)).bool())
        return replace(self, index=move(self.index[None])[0], instances=instances)

    def named(self, num_classes: int) -> SegmentMap:
        """Return the map with unnamed stuff as void, for evaluation and drawing."""
        lookup = torch.arange(-1, len(self.labels), dtype=torch.int32)
        lookup[1:][self.labels == num_classes] = -1
        return replace(self, index=lookup[self.index.long() + 1])

    def without_small_things(self, num_things: int, min_area: int) -> SegmentMap:
        """Turn things of fewer than `min_area` pixels into void, such as slivers left by a crop.

        With `instances`, small instances are dropped and the map stays unchanged.
        """
        if self.instances is not None:
            return replace(self, instances=self.instances[self.instances.masks.sum((1, 2)) >= min_area])
        area = torch.bincount(self.index.flatten().long() + 1, minlength=len(self.labels) + 1)[1:]
        small = (area < min_area) & (self.labels < num_things)
        lookup = torch.where(small, -1, torch.arange(len(self.labels)))
        lookup = torch.cat([lookup, lookup.new_tensor([-1])]).int()  # index -1 is void
        return replace(self, index=lookup[self.index.long()])

    def targets(self, num_things: int, image_id: int | str, file_name: str) -> Targets:
        """Return the targets of the image; segments and instances without a pixel are dropped."""
        if self.instances is None:
            return Targets.from_panoptic(
                self.index, self.labels, self.iscrowd, num_things, image_id=image_id, file_name=file_name
            )
        instances = self.instances[self.instances.masks.flatten(1).any(1)]
        classes = torch.cat([self.labels, self.labels.new_tensor([VOID])])  # index -1 is void
        owner = torch.full((len(self.labels) + 1,), -1, dtype=torch.int64)
        shown = torch.nonzero(instances.segment >= 0).squeeze(1)
        owner[instances.segment[shown]] = shown
        return Targets(
            boxes=mask_boxes(instances.masks),
            labels=instances.labels,
            masks=instances.masks,
            iscrowd=instances.iscrowd,
            sem_seg=classes[self.index.long()],
            owner=owner[self.index.long()],
            image_id=image_id,
            file_name=file_name,
        )


def match_segments(segments: SegmentMap, masks: Tensor, labels: Tensor, iscrowd: Tensor) -> Tensor:
    """Match instances to segments of a panoptic map greedily by IoU, the best pair first.

    Only instances and segments of the same class and `iscrowd` that share a pixel are matched, each at most once.

    Args:
        segments: panoptic map with S segments.
        masks: Tensor[M, H, W] bool, masks of the instances.
        labels: Tensor[M] int64, contiguous class of each instance.
        iscrowd: Tensor[M] bool, whether each instance is a crowd.

    Returns:
        Tensor[M] int64, segment of each instance, 0..S-1, -1 = none.
    """
    count = len(segments.labels)
    index = segments.index.flatten().long() + 1
    area = torch.bincount(index, minlength=count + 1)[1:]
    match = torch.full((len(masks),), -1, dtype=torch.int64)
    if not len(masks) or not count:
        return match
    rows = [torch.bincount(index[mask], minlength=count + 1)[1:] for mask in masks.flatten(1)]
    common = torch.stack(rows).double()  # M×S
    iou = common / (area + masks.sum((1, 2))[:, None] - common).clamp(min=1)
    iou[(labels[:, None] != segments.labels) | (iscrowd[:, None] != segments.iscrowd)] = 0
    for _ in range(min(iou.shape)):
        best = int(iou.argmax())
        m, s = divmod(best, count)
        if iou[m, s] <= 0:
            break
        match[m] = s
        iou[m], iou[:, s] = 0, 0
    return match
