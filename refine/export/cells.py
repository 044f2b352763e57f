"""Partition of the image by the masks of its instances, as `refine.ops.masks.paste_runs` and `refine.ops.cells`.

A mask begins and ends at columns of each image row that are given in closed form. A cumulative sum over these
columns tells which masks cover each pixel; pixels covered by the same masks are one cell.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Edges:
    """E places where masks begin or end.

    Attributes:
        mask: Tensor[E] int64, index of the mask.
        position: Tensor[E] int64, flat index of the first pixel inside, or of the first pixel after it.
        step: Tensor[E] int64, 1 where the mask begins and -1 where it ends.
    """

    mask: Tensor
    position: Tensor
    step: Tensor

    def areas(self, count: int) -> Tensor:
        """Return the area of each of `count` masks in pixels, Tensor[count] int64."""
        return sums(self.mask, -self.step * self.position, count)


@dataclass
class Cells:
    """Partition of the image by K masks into A cells.

    Attributes:
        cell: Tensor[H·W] int64, cell of each pixel.
        covers: Tensor[A, K] bool, whether a mask covers a cell.
        areas: Tensor[A] int64, pixels of each cell.
    """

    cell: Tensor
    covers: Tensor
    areas: Tensor


def mask_edges(roi_masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5) -> Edges:
    """Find where masks begin and end in each row of the image.

    Args:
        roi_masks: Tensor[N, M, M] float32, mask probabilities inside the boxes.
        boxes: Tensor[N, 4] in pixels of the image.
        size: (height, width) of the image in pixels.
        threshold: probability from which on a pixel belongs to the mask.
    """
    (height, width), bins = size, roi_masks.shape[1]
    box = boxes.double()
    valid = box.isfinite().all(1) & (box[:, 2:] > box[:, :2]).all(1)
    box = torch.where(valid[:, None], box, torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64))
    x1, y1 = box[:, 0], box[:, 1]
    bin_width, bin_height = (box[:, 2] - x1) / bins, (box[:, 3] - y1) / bins
    y = torch.arange(height, dtype=torch.float64) + 0.5
    position = ((y - y1[:, None]) / bin_height[:, None] + 0.5).clamp(0, bins + 1)  # N×H, 0 is the zero padding
    above = position.floor().clamp(max=bins)
    weight = (position - above).float()[:, :, None]
    padded = F.pad(roi_masks, (1, 1, 1, 1)).flatten(0, 1)  # N·(M+2) × (M+2)
    line = above.long() + (torch.arange(boxes.shape[0]) * (bins + 2))[:, None]
    upper, lower = padded[line], padded[line + 1]  # N×H×(M+2)
    step = lower - upper
    samples = torch.where(weight < 0.5, upper + weight * step, lower - step * (1 - weight))  # as torch.lerp
    inside = (samples >= threshold) & valid[:, None, None]
    mask, row, bin_ = torch.nonzero(inside[:, :, 1:] != inside[:, :, :-1], as_tuple=True)
    left, right = samples[mask, row, bin_].double(), samples[mask, row, bin_ + 1].double()
    begins = right > left
    x = x1[mask] + (bin_ + (threshold - left) / (right - left) - 0.5) * bin_width[mask] - 0.5
    column = torch.where(begins, x.ceil(), x.floor() + 1).clamp(0, width).long()
    return Edges(mask, row * width + column, torch.where(begins, 1, -1))


def cells_of(edges: Edges, count: int, keys: Tensor, pixels: int) -> Cells:
    """Partition an image of `pixels` pixels by `count` masks.

    Args:
        edges: edges of the masks.
        count: number K of masks.
        keys: distinct random numbers, Tensor[at least K] int64, whose sums identify sets of masks.
        pixels: number of pixels of the image.
    """
    ends = torch.stack([torch.zeros_like(edges.position.sum()), torch.full((), pixels, dtype=torch.int64)])
    marked = torch.zeros(pixels + 1, dtype=torch.int64)
    places = torch.cat([ends, edges.position])
    marked = marked.scatter(0, places, torch.ones_like(places))
    span = marked.cumsum(0) - 1  # of each pixel, and of the end
    starts = torch.nonzero(marked).squeeze(1)  # R spans, then the end
    total = starts.shape[0]
    place = span[edges.position]
    key = sums(place, edges.step * keys[edges.mask], total).cumsum(0)
    steps = sums(place * count + edges.mask, edges.step.int(), total * count)
    inside = steps.view(total, count).cumsum(0, dtype=torch.int32)  # whether a mask covers a span

    ordered, order = torch.sort(key)
    new = torch.cat([torch.ones(1, dtype=torch.bool), ordered[1:] != ordered[:-1]])
    cell = torch.zeros_like(order).scatter(0, order, new.long().cumsum(0) - 1)
    covers = inside[order[torch.nonzero(new).squeeze(1)]] > 0
    lengths = torch.cat([starts[1:] - starts[:-1], torch.zeros(1, dtype=torch.int64)])
    return Cells(cell[span[:-1]], covers, sums(cell, lengths, covers.shape[0]))


def random_keys(count: int) -> Tensor:
    """Return `count` random numbers whose sums stay below 2^62: Tensor[count] int64."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 2**62 // max(count, 1), (count,), generator=generator)


def sums(index: Tensor, values: Tensor, count: int) -> Tensor:
    """Sum the values of equal indices: Tensor[n] each -> Tensor[count] of the values' dtype."""
    return torch.zeros(count, dtype=values.dtype).scatter_add(0, index, values)
