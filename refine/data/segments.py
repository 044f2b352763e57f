"""A picture's annotation as one map: what transforms move, and targets are derived from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from refine.structures import Targets


@dataclass
class SegmentMap:
    """Which segment each pixel belongs to.

    Attributes:
        index: Tensor[H, W] int32; -1 = void, k = k-th segment.
        labels: Tensor[S] int64, contiguous class of each segment.
        iscrowd: Tensor[S] bool.
    """

    index: Tensor
    labels: Tensor
    iscrowd: Tensor

    def with_index(self, index: Tensor) -> SegmentMap:
        return replace(self, index=index)

    def without_small_things(self, num_things: int, min_area: int) -> SegmentMap:
        """Thing segments of fewer than `min_area` pixels become void: slivers that a crop has left."""
        area = torch.bincount(self.index.flatten().long() + 1, minlength=len(self.labels) + 1)[1:]
        small = (area < min_area) & (self.labels < num_things)
        lookup = torch.where(small, -1, torch.arange(len(self.labels)))
        lookup = torch.cat([lookup, lookup.new_tensor([-1])]).int()  # index -1 is void
        return self.with_index(lookup[self.index.long()])

    def targets(self, num_things: int, image_id: int | str, file_name: str) -> Targets:
        return Targets.from_panoptic(
            self.index, self.labels, self.iscrowd, num_things, image_id=image_id, file_name=file_name
        )
