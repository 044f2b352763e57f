"""Ground truth of one image."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from refine.structures.categories import VOID


@dataclass
class Targets:
    """Ground truth of one image of H x W pixels with N thing instances; classes are contiguous indices.

    Attributes:
        boxes: Tensor[N, 4] float32, x1, y1, x2, y2 in pixels, tight around the masks (x2/y2 exclusive).
        labels: Tensor[N] int64, thing class, 0..num_things-1.
        masks: Tensor[N, H, W] bool; they overlap only where instance annotations do.
        iscrowd: Tensor[N] bool; crowd regions are never positives, and their area is ignored.
        sem_seg: Tensor[H, W] int64, class from the panoptic map, things included, 0..num_classes-1; `VOID` where
            unlabelled, num_classes for stuff of an unnamed class.
        owner: Tensor[H, W] int64, index 0..N-1 of the instance that the panoptic map shows at each pixel, or
            -1; occlusion labels are derived from it.
        image_id: image id in the data set.
        file_name: image file name, for error messages.

    Raises:
        ValueError: fields have unequal lengths or sizes, or a box is empty.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor
    iscrowd: Tensor
    sem_seg: Tensor
    owner: Tensor
    image_id: int | str = 0
    file_name: str = ""

    def __post_init__(self) -> None:
        n, size = len(self.boxes), tuple(self.sem_seg.shape)
        if self.boxes.shape != (n, 4):
            raise ValueError(f"Targets.boxes: expected shape (N, 4), got {tuple(self.boxes.shape)}")
        for name, expected in (
            ("labels", (n,)),
            ("iscrowd", (n,)),
            ("masks", (n, *size)),
            ("owner", size),
        ):
            got = tuple(getattr(self, name).shape)
            if got != expected:
                raise ValueError(f"Targets.{name}: expected shape {expected}, got {got} ({self.file_name})")
        if n and bool((self.boxes[:, 2:] <= self.boxes[:, :2]).any()):
            raise ValueError(f"Targets.boxes: expected non-empty boxes, got one without area ({self.file_name})")

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def size(self) -> tuple[int, int]:
        """Return (height, width) in pixels."""
        return int(self.sem_seg.shape[0]), int(self.sem_seg.shape[1])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Targets:
        return self._copied(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Targets:
        return self._copied(Tensor.pin_memory)

    def _copied(self, change: Callable[[Tensor], Tensor]) -> Targets:
        """Return a copy with other tensors of the same values, which are not checked again: a GPU would wait."""
        copied = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(copied, name, change(value))
        return copied

    @classmethod
    def from_panoptic(
        cls,
        segment_map: Tensor,
        labels: Tensor,
        iscrowd: Tensor,
        num_things: int,
        image_id: int | str = 0,
        file_name: str = "",
    ) -> Targets:
        """Derive boxes, masks, semantic map and owners from a map of segment indices.

        Segments without a pixel, for example after a crop, are dropped; crowd pixels keep their class in
        `sem_seg`, as in COCO's panoptic ground truth.

        Args:
            segment_map: Tensor[H, W] integer, segment index 0..S-1, or -1 for void.
            labels: Tensor[S] int64, contiguous class of each segment (things and stuff).
            iscrowd: Tensor[S] bool, whether the segment is a crowd region.
            num_things: number of thing classes; classes below it are things.
            image_id, file_name: see the attributes.
        """
        present = torch.unique(segment_map)
        present = present[present >= 0]
        things = present[labels[present] < num_things]
        lookup = torch.cat([labels, labels.new_tensor([VOID])])  # index -1 is void
        sem_seg = lookup[segment_map.long()]
        rank = torch.full((len(labels) + 1,), -1, dtype=torch.int64)
        rank[things] = torch.arange(len(things))
        owner = rank[segment_map.long()]
        masks = owner[None] == torch.arange(len(things))[:, None, None]
        return cls(
            boxes=mask_boxes(masks),
            labels=labels[things],
            masks=masks,
            iscrowd=iscrowd[things],
            sem_seg=sem_seg,
            owner=owner,
            image_id=image_id,
            file_name=file_name,
        )


def mask_boxes(masks: Tensor) -> Tensor:
    """Return tight boxes of non-empty masks: Tensor[N, H, W] bool -> Tensor[N, 4] float32 (x2/y2 exclusive)."""
    n, height, width = masks.shape
    if n == 0:
        return torch.zeros(0, 4, device=masks.device)
    columns, rows = masks.any(1).int(), masks.any(2).int()
    x1, y1 = columns.argmax(1), rows.argmax(1)
    x2, y2 = width - columns.flip(1).argmax(1), height - rows.flip(1).argmax(1)
    return torch.stack([x1, y1, x2, y2], 1).float()
