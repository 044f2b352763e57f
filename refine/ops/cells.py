"""Partition of an image by N masks: pixels covered by the same set of masks form one cell.

Areas, overlaps and owners depend only on which masks cover a pixel, so they can be computed exactly per
cell. A hundred masks partition a million pixels into about a thousand cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from refine.ops.masks import MaskRuns
from refine.ops.runs import flatnonzero, run_lengths

CHUNK = 1 << 16
"""Number of cells whose membership bits are unpacked at a time."""


@dataclass
class Cells:
    """Partition of an image by N masks into A cells, stored as R spans (runs of pixels of one cell).

    Attributes:
        count: number of masks, N.
        starts: Tensor[R] int64, flat index of the first pixel of each span, increasing from 0.
        cell: Tensor[R] int64, cell of each span, 0..A-1.
        words: Tensor[A, W] int64; bit i % 64 of word i // 64 is set if mask i covers the cell.
        areas: Tensor[A] int64, pixels of each cell.
    """

    count: int
    starts: Tensor
    cell: Tensor
    words: Tensor
    areas: Tensor

    def covers(self, part: slice | Tensor | None = None) -> Tensor:
        """Return which masks cover each cell, or each cell of `part`: Tensor[A, N] bool."""
        return _unpack(self.words if part is None else self.words[part]).flatten(1)[:, : self.count]

    def members(self) -> tuple[Tensor, Tensor]:
        """Return the mask and the cell of each pair of both, Tensor[M] int64 each, sorted by mask, then by cell."""
        masks, members = [self.words.new_zeros(0)], [self.words.new_zeros(0)]
        for word in range(self.words.shape[1]):
            touched = flatnonzero(self.words[:, word] != 0)
            bit, place = torch.nonzero(_unpack(self.words[touched, word]).T).unbind(1)
            masks.append(bit + 64 * word)
            members.append(touched[place])
        return torch.cat(masks), torch.cat(members)

    def intersections(self) -> Tensor:
        """Count the pixels that each pair of masks shares: Tensor[N, N] int64, areas on the diagonal."""
        # Only words that cover a common cell are multiplied: of thousands of masks, few pairs share pixels.
        width = self.words.shape[1]
        total = torch.zeros(width, width, 64, 64, dtype=torch.float64, device=self.words.device)
        for first in range(0, len(self.words), CHUNK):
            words, areas = self.words[first : first + CHUNK], self.areas[first : first + CHUNK]
            for one in range(width):
                touched = flatnonzero(words[:, one] != 0)
                part = words[touched]
                weighted = _unpack(part[:, one]).double() * areas[touched, None]
                for other in torch.nonzero((part[:, : one + 1] != 0).any(0)).flatten().tolist():
                    common = flatnonzero(part[:, other] != 0)
                    shared = weighted[common].T @ _unpack(part[common, other]).double()
                    total[one, other] += shared
                    if other < one:
                        total[other, one] += shared.T
        total = total.transpose(1, 2).reshape(width * 64, width * 64)[: self.count, : self.count]
        return total.long()  # exact: sums of integers below 2^53


def _unpack(words: Tensor) -> Tensor:
    """Return the bits of words, lowest first: Tensor[...] int64 -> Tensor[..., 64] bool."""
    return (words[..., None] >> torch.arange(64, device=words.device)).bitwise_and_(1).bool()


def cells_of(runs: MaskRuns) -> Cells:
    """Partition an image by its masks.

    Args:
        runs: N masks; the runs of one mask must not overlap each other.
    """
    device, total = runs.start.device, runs.size[0] * runs.size[1]
    edges = torch.cat([runs.start.new_zeros(1), runs.start, runs.end])
    positions, place = torch.unique(edges, return_inverse=True)
    words = torch.zeros(len(positions), -(-runs.count // 64) or 1, dtype=torch.int64, device=device)
    # A mask's bit is set where a run starts and cleared where it ends. Runs of one mask do not overlap, so
    # the bit can be added and subtracted, and the cumulative sum (modulo 2^64) holds the bits of every span.
    word, bit = runs.mask // 64, torch.ones_like(runs.mask) << (runs.mask % 64)
    begin, end = place[1:].chunk(2)
    words.index_put_((begin, word), bit, accumulate=True)
    words.index_put_((end, word), -bit, accumulate=True)
    words = words.cumsum(0)
    inside = flatnonzero(positions < total)  # a run may end at the last pixel
    positions, words = positions[inside], words[inside]

    # Sort spans by a hash of their words, so that equal ones are adjacent; a new cell starts wherever the words
    # differ. A hash collision can only split a cell, which is harmless, but never merge two.
    odd = torch.arange(words.shape[1], device=device) * 2 + 1
    key = (words * (odd * -7046029254386353131)).sum(1)
    order = torch.argsort(key)
    ordered = words[order]
    new = torch.ones(len(order), dtype=torch.bool, device=device)
    torch.any(ordered[1:] != ordered[:-1], 1, out=new[1:])
    cell = torch.empty_like(order)
    cell[order] = new.cumsum(0) - 1
    words = ordered[new]
    areas = torch.zeros(len(words), dtype=torch.int64, device=device)
    areas.index_add_(0, cell, run_lengths(positions, total))
    return Cells(runs.count, positions, cell, words, areas)
