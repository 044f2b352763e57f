"""An image's annotation as one map: what transforms move, and targets are derived from."""

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
        labels: Tensor[M] int64, contiguous thing classes.
        iscrowd: Tensor[M] bool.
        segment: Tensor[M] int64, which segment of the map shows the instance, -1 = none.
    """

    masks: Tensor
    labels: Tensor
    iscrowd: Tensor
    segment: Tensor

    def __getitem__(self, keep: Tensor) -> InstanceMasks:
        """Those that a Tensor[M] bool picks."""
        return InstanceMasks(self.masks[keep], self.labels[keep], self.iscrowd[keep], self.segment[keep])


@dataclass
class SegmentMap:
    """Which segment each pixel belongs to.

    Attributes:
        index: Tensor[H, W] int32; -1 = void, k = k-th segment.
        labels: Tensor[S] int64, contiguous class of each segment; the number of classes for unnamed stuff.
        iscrowd: Tensor[S] bool.
        instances: boxes, labels and masks of the targets come from these, if given, instead of the map.
    """

    index: Tensor
    labels: Tensor
    iscrowd: Tensor
    instances: InstanceMasks | None = None

    def moved(self, move: Callable[[Tensor], Tensor]) -> SegmentMap:
        """The same after a change of geometry.

        Args:
            move: takes and gives integers [..., H, W], by picking pixels, not mixing them.
        """
        instances = self.instances
        if instances is not None:
            instances = replace(instances, masks=move(instances.masks.to(torch.uint8)).bool())
        return replace(self, index=move(self.index[None])[0], instances=instances)

    def named(self, num_classes: int) -> SegmentMap:
        """Unnamed stuff becomes void, as measuring and drawing need it."""
        lookup = torch.arange(-1, len(self.labels), dtype=torch.int32)
        lookup[1:][self.labels == num_classes] = -1
        return replace(self, index=lookup[self.index.long() + 1])

    def without_small_things(self, num_things: int, min_area: int) -> SegmentMap:
        """Things of fewer than `min_area` pixels become void: slivers that a crop has left.

        With `instances`, those of fewer pixels are left out, and the map keeps its segments.
        """
        if self.instances is not None:
            return replace(self, instances=self.instances[self.instances.masks.sum((1, 2)) >= min_area])
        area = torch.bincount(self.index.flatten().long() + 1, minlength=len(self.labels) + 1)[1:]
        small = (area < min_area) & (self.labels < num_things)
        lookup = torch.where(small, -1, torch.arange(len(self.labels)))
        lookup = torch.cat([lookup, lookup.new_tensor([-1])]).int()  # index -1 is void
        return replace(self, index=lookup[self.index.long()])

    def targets(self, num_things: int, image_id: int | str, file_name: str) -> Targets:
        """Boxes, masks, semantic map and owners. Segments and instances without a pixel vanish."""
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
    """Which segment of a panoptic map shows which instance: greedily by IoU, the best pair first.

    Only things of the same class and the same `iscrowd` that share a pixel are matched, each once.

    Args:
        segments: the map.
        masks: Tensor[M, H, W] bool, of the instances.
        labels: Tensor[M] int64.
        iscrowd: Tensor[M] bool.

    Returns:
        Tensor[M] int64, index of the segment, -1 = none.
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
