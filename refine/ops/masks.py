"""Full-image instance masks, as runs or dense."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from refine.ops.runs import flatnonzero

# Shape letters: N masks, M bins per side of a mask inside its box, R runs.


@dataclass
class MaskRuns:
    """N masks of one image as runs of pixels, sorted by mask and then by position.

    Attributes:
        size: (height, width) of the image in pixels.
        count: number of masks, N; masks without runs are empty.
        mask: Tensor[R] int64, mask that each run belongs to, non-decreasing.
        start, end: Tensor[R] int64, flat pixel indices of each run, end exclusive.
    """

    size: tuple[int, int]
    count: int
    mask: Tensor
    start: Tensor
    end: Tensor

    def areas(self) -> Tensor:
        """Return the area of each mask in pixels: Tensor[N] int64."""
        areas = torch.zeros(self.count, dtype=torch.int64, device=self.start.device)
        return areas.index_add_(0, self.mask, self.end - self.start)

    def __len__(self) -> int:
        return self.count

    def to(self, device: torch.device | str) -> MaskRuns:
        return MaskRuns(self.size, self.count, self.mask.to(device), self.start.to(device), self.end.to(device))

    def __getitem__(self, order: Tensor | slice) -> MaskRuns:
        """Select, reorder or repeat masks by a slice, a Tensor[N] bool, or indices, Tensor[n] int64."""
        device = self.start.device
        order = torch.arange(self.count, device=device)[order]
        first = torch.searchsorted(self.mask.contiguous(), torch.arange(self.count + 1, device=device))
        counts = first.diff()[order]
        total = int(counts.sum())
        mask = torch.arange(len(order), device=device).repeat_interleave(counts, output_size=total)
        run = torch.arange(total, device=device) + (first[order] - (counts.cumsum(0) - counts))[mask]
        return MaskRuns(self.size, len(order), mask, self.start[run], self.end[run])

    def placed(self, top: int, left: int, size: tuple[int, int]) -> MaskRuns:
        """Return the masks in an image of `size` (height, width), in which this one begins at pixel (top, left)."""
        width = self.size[1]
        first = self.start.div(width, rounding_mode="floor")
        rows = (self.end - 1).div(width, rounding_mode="floor") - first + 1  # a run may continue into other rows
        part = torch.arange(len(rows), device=rows.device).repeat_interleave(rows)
        row = first[part] + torch.arange(len(part), device=rows.device) - (rows.cumsum(0) - rows)[part]
        offset = (row + top) * size[1] + left - row * width
        start = torch.maximum(self.start[part], row * width) + offset
        end = torch.minimum(self.end[part], (row + 1) * width) + offset
        return MaskRuns(size, self.count, self.mask[part], start, end)

    def dense(self) -> Tensor:
        """Return dense masks: Tensor[N, H, W] bool."""
        height, width = self.size
        masks = torch.zeros(self.count, height * width, dtype=torch.bool, device=self.start.device)
        if masks.device.type == "cpu":
            rows = masks.numpy()
            runs = zip(self.mask.tolist(), self.start.tolist(), self.end.tolist(), strict=True)
            for mask, start, end in runs:  # slices of contiguous memory: faster than a vectorised scatter
                rows[mask, start:end] = True
        else:
            lengths = self.end - self.start
            first = self.mask * height * width + self.start - (lengths.cumsum(0) - lengths)
            base = first.repeat_interleave(lengths)
            masks.view(-1)[base + torch.arange(len(base), device=base.device)] = True
        return masks.view(-1, height, width)


def paste_masks(roi_masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """Paste masks on a regular grid over their boxes into the full image.

    The mask is sampled at each pixel centre by bilinear interpolation (align_corners=False, zero outside
    the box), as in detectron2's `paste_masks_in_image`.

    Args:
        roi_masks: Tensor[N, M, M] float, mask probabilities, 0-1.
        boxes: Tensor[N, 4] float, x1, y1, x2, y2 in pixels; boxes without area give empty masks.
        size: (height, width) of the image in pixels.
        threshold: probability, above 0, from which on a pixel belongs to the mask.

    Returns:
        Tensor[N, height, width] bool.
    """
    return paste_runs(roi_masks, boxes, size, threshold).dense()


def paste_runs(roi_masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5) -> MaskRuns:
    """Compute the runs of `paste_masks` without visiting every pixel.

    Along a row of pixels the interpolated mask is linear between two neighbouring samples, so it crosses
    the threshold at most once between them, at a position given in closed form. The cost of N masks is
    N·height·M instead of N·height·width.

    Args:
        roi_masks, boxes, size, threshold: as in `paste_masks`.

    Raises:
        ValueError: the threshold is not above 0.
    """
    if not threshold > 0:
        raise ValueError(f"paste_runs: expected a threshold above 0, got {threshold}")
    (height, width), (count, bins, _) = size, roi_masks.shape
    box = boxes.double()
    valid = box.isfinite().all(1) & (box[:, 2:] > box[:, :2]).all(1)
    box = torch.where(valid[:, None], box, box.new_tensor([0.0, 0.0, 1.0, 1.0]))
    x1, y1 = box[:, 0], box[:, 1]
    bin_width, bin_height = (box[:, 2] - x1) / bins, (box[:, 3] - y1) / bins

    # Rows of pixels from one sample above the first to one below the last sample.
    top = (y1 - bin_height / 2 - 1).floor().clamp(0, height).long()
    bottom = (box[:, 3] + bin_height / 2 + 1).ceil().clamp(0, height).long()
    rows = torch.where(valid, (bottom - top).clamp(min=0), 0)
    mask = torch.arange(count, device=boxes.device).repeat_interleave(rows)
    y = torch.arange(len(mask), device=boxes.device) - (rows.cumsum(0) - rows - top)[mask]

    # One line of samples per row of pixels, zero-padded at both ends: len(mask) × (M + 2).
    position = ((y + 0.5 - y1[mask]) / bin_height[mask] + 0.5).clamp(0, bins + 1)  # 0 is the zero padding
    above = position.floor().clamp(max=bins).long()
    padded = F.pad(roi_masks.float(), (1, 1, 1, 1)).flatten(0, 1)  # N·(M+2) × (M+2)
    line = mask * (bins + 2) + above
    weight = (position - above).float()[:, None]
    samples = torch.lerp(padded.index_select(0, line), padded.index_select(0, line + 1), weight)

    inside = samples >= threshold
    # Lines begin and end outside the mask, so crossings alternate: in, out, in, out.
    crossing = flatnonzero(inside[:, 1:] != inside[:, :-1])
    row = crossing.div(bins + 1, rounding_mode="floor")
    left = samples.view(-1)[crossing + row].double()
    right = samples.view(-1)[crossing + row + 1].double()
    sample = crossing - row * (bins + 1) + (threshold - left) / (right - left) - 0.5
    of = mask[row]
    x = x1[of] + sample * bin_width[of] - 0.5  # in units of pixel centres
    begin = x[::2].ceil().clamp(0, width).long()
    finish = (x[1::2].floor() + 1).clamp(0, width).long()
    keep = flatnonzero(finish > begin)
    first_pixel = (y[row[::2]] * width)[keep]
    return MaskRuns(size, count, of[::2][keep], first_pixel + begin[keep], first_pixel + finish[keep])


def dense_runs(masks: Tensor) -> MaskRuns:
    """Convert dense masks, Tensor[N, H, W] bool, to runs; the inverse of `MaskRuns.dense`."""
    count, height, width = masks.shape
    pixels = height * width
    parts = []
    # One mask at a time on the CPU, so that it stays in the cache; several at a time on a GPU.
    step = 1 if masks.device.type == "cpu" else 32
    for first in range(0, count, step):
        padded = F.pad(masks[first : first + step].flatten(1), (1, 1))
        edge = flatnonzero(padded[:, 1:] != padded[:, :-1])  # in n × (pixels + 1): in, out, in, out
        mask = edge.div(pixels + 1, rounding_mode="floor")
        parts.append(torch.stack([mask + first, edge - mask * (pixels + 1)]))
    mask, edge = torch.cat(parts, 1) if parts else masks.new_zeros(2, 0, dtype=torch.int64)
    return MaskRuns((height, width), count, mask[::2], edge[::2], edge[1::2])


def join_runs(parts: Sequence[MaskRuns], size: tuple[int, int]) -> MaskRuns:
    """Concatenate the masks of images of one size, (height, width) in pixels."""
    counts = [part.count for part in parts]
    if not parts:
        return dense_runs(torch.zeros(0, *size, dtype=torch.bool))
    firsts = accumulate(counts[:-1], initial=0)
    mask = torch.cat([part.mask + first for part, first in zip(parts, firsts, strict=True)])
    return MaskRuns(size, sum(counts), mask, torch.cat([p.start for p in parts]), torch.cat([p.end for p in parts]))


def shared_areas(runs: MaskRuns) -> tuple[Tensor, Tensor]:
    """Count the pixels that pairs of masks share, without a matrix of all pairs.

    Args:
        runs: N masks; the runs of one mask must not overlap each other.

    Returns:
        The P pairs that share pixels, Tensor[P, 2] int64, in increasing order and each once as (i, j), i < j; and
        the number of pixels of each, Tensor[P] int64.
    """
    order = torch.argsort(runs.start)
    start, end, mask = runs.start[order], runs.end[order], runs.mask[order]
    # A run meets the runs after it that begin before it ends, if the next one does.
    index = flatnonzero(start[1:] < end[:-1])
    after = torch.searchsorted(start, end.index_select(0, index))
    met = after - index - 1
    earlier = index.repeat_interleave(met)
    first = (after - met.cumsum(0)).repeat_interleave(met)  # plus the number of a meeting: the later run
    later = torch.arange(len(earlier), device=start.device) + first
    one, other = mask.index_select(0, earlier), mask.index_select(0, later)
    keys = torch.minimum(one, other) * runs.count + torch.maximum(one, other)
    pairs, place = torch.unique(keys, return_inverse=True)
    shared = torch.minimum(end.index_select(0, earlier), end.index_select(0, later)) - start.index_select(0, later)
    areas = torch.zeros_like(pairs).index_add_(0, place, shared)
    count = max(runs.count, 1)
    return torch.stack([pairs.div(count, rounding_mode="floor"), pairs % count], 1), areas


def overlapping(intersections: Tensor, share: float) -> Tensor:
    """Find the pairs of masks that overlap enough to decide which one lies in front.

    Args:
        intersections: Tensor[N, N] int64, pixels that each pair shares; areas on the diagonal.
        share: ρ, 0-1; a pair overlaps if it shares at least this fraction of either mask.

    Returns:
        Tensor[N, N] bool, symmetric, false on the diagonal.
    """
    areas = intersections.diagonal()
    enough = (intersections >= share * areas[:, None].double()) & (intersections > 0)
    return (enough | enough.T).fill_diagonal_(False)
