"""Predicted instances of one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from refine.errors import RefineError
from refine.ops.masks import MaskRuns, dense_runs, paste_runs
from refine.structures.arrays import as_masks, as_tensor


@dataclass
class Instances:
    """N predicted instances of one image, all in the pixel frame of `image_size`.

    NumPy arrays are converted to tensors, and 0/1 masks of any dtype to bool.

    Attributes:
        image_size: (height, width) in pixels of the image that boxes and masks refer to.
        boxes: Tensor[N, 4] float, x1, y1, x2, y2 in pixels (continuous, x2/y2 exclusive).
        scores: Tensor[N] float, 0-1.
        labels: Tensor[N] int64, contiguous thing class, 0..num_things-1.
        roi_masks: Tensor[N, M, M] float or None, mask probability (0-1, sigmoid applied once) on a
            regular grid over the box; M is 28 in the paper.
        masks: Tensor[N, H, W] bool or None, full-image masks.
        features: Tensor[N, C, 14, 14] float or None, f_ins + f_sem of each box (f_ins if F_sem has another
            width than the FPN): the appearance cue of the occlusion head.
        runs: full-image masks as runs, or None; needs much less memory than `masks` and takes precedence.

    Raises:
        TypeError: a field is not an array.
        ValueError: fields have unequal lengths or a wrong shape.
        RefineError: masks contain values other than 0 and 1.

    Examples:
        >>> masks = np.zeros((1, 4, 6), bool)
        >>> masks[0, 1:3, 2:5] = True
        >>> instances = Instances((4, 6), boxes=[[2, 1, 5, 3]], scores=[0.9], labels=[0], masks=masks)
        >>> len(instances), instances.masks.sum().item()
        (1, 6)
    """

    image_size: tuple[int, int]
    boxes: Tensor
    scores: Tensor
    labels: Tensor
    roi_masks: Tensor | None = None
    masks: Tensor | None = None
    features: Tensor | None = None
    runs: MaskRuns | None = None

    def __post_init__(self) -> None:
        self._convert()
        n = len(self.boxes)
        if self.boxes.ndim != 2 or self.boxes.shape[1] != 4:
            raise ValueError(f"Instances.boxes: expected shape (N, 4), got {tuple(self.boxes.shape)}")
        for name, value in self._tensors().items():
            if len(value) != n:
                raise ValueError(f"Instances.{name}: expected {n} entries as in boxes, got {len(value)}")
        if self.masks is not None and tuple(self.masks.shape[1:]) != self.image_size:
            raise ValueError(
                f"Instances.masks: expected {n} masks of {self.image_size}, got {tuple(self.masks.shape)}"
            )
        for name, shape in (("scores", "N"), ("labels", "N"), ("roi_masks", "N, M, M")):
            value = getattr(self, name)
            if value is not None and value.ndim != len(shape.split()):
                raise ValueError(f"Instances.{name}: expected shape ({shape}), got {tuple(value.shape)}")

    def _convert(self) -> None:
        """Convert arrays to tensors of the dtypes that the attributes document."""
        self.image_size = (int(self.image_size[0]), int(self.image_size[1]))
        for name in ("boxes", "scores", "labels"):
            setattr(self, name, as_tensor(f"Instances.{name}", getattr(self, name)))
        for name in ("roi_masks", "features"):
            if getattr(self, name) is not None:
                setattr(self, name, as_tensor(f"Instances.{name}", getattr(self, name)))
        if self.masks is not None:
            self.masks = as_masks("Instances.masks", self.masks)
        for name in ("boxes", "scores"):
            if not getattr(self, name).is_floating_point():
                setattr(self, name, getattr(self, name).float())
        if self.labels.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
            self.labels = self.labels.long()

    def _tensors(self) -> dict[str, Tensor | MaskRuns]:
        return {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name != "image_size" and getattr(self, f.name) is not None
        }

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Tensor | slice) -> Instances:
        """Select instances by an index tensor, a boolean tensor or a slice; tensors may share memory."""
        if isinstance(index, Tensor) and index.dtype == torch.bool:  # is searched once, not for each field
            index = torch.arange(len(self), device=self.boxes.device)[index]
        return self._with({k: v[index] for k, v in self._tensors().items()})

    def to(self, device: torch.device | str) -> Instances:
        return self._with({k: v.to(device) for k, v in self._tensors().items()})

    def _with(self, tensors: dict[str, Any]) -> Instances:
        return replace(self, **tensors)

    def mask_runs(self) -> MaskRuns:
        """Return the full-image masks as runs: `runs`, else `masks`, else `roi_masks` pasted at 0.5.

        Raises:
            RefineError: there are instances, but no masks.
        """
        if self.runs is not None:
            return self.runs
        if self.masks is not None:
            return dense_runs(self.masks)
        if self.roi_masks is not None:
            return paste_runs(self.roi_masks, self.boxes, self.image_size)
        if len(self):
            raise RefineError("instances: neither `masks` nor `roi_masks` is given; fusion needs one of them")
        return dense_runs(torch.zeros(0, *self.image_size, dtype=torch.bool, device=self.boxes.device))

    @classmethod
    def joined(cls, parts: Sequence[Instances]) -> Instances:
        """Join instances of one image whose masks are `runs`; there must be at least one part."""
        counts = [len(part) for part in parts]
        runs = [part.mask_runs() for part in parts]
        mask = torch.cat([run.mask + sum(counts[:n]) for n, run in enumerate(runs)])
        start, end = torch.cat([run.start for run in runs]), torch.cat([run.end for run in runs])
        return cls(
            parts[0].image_size,
            torch.cat([part.boxes for part in parts]),
            torch.cat([part.scores for part in parts]),
            torch.cat([part.labels for part in parts]),
            runs=MaskRuns(parts[0].image_size, sum(counts), mask, start, end),
        )

    @classmethod
    def empty(cls, image_size: tuple[int, int], device: torch.device | str = "cpu") -> Instances:
        """Return zero instances of an image of `image_size` (height, width)."""
        return cls(
            image_size,
            boxes=torch.zeros(0, 4, device=device),
            scores=torch.zeros(0, device=device),
            labels=torch.zeros(0, dtype=torch.int64, device=device),
        )
