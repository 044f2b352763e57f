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

    def covered_by(self, mask: int) -> Tensor:
        """Return which cells a mask covers: Tensor[A] bool."""
        return (self.words[:, mask // 64] >> (mask % 64)).bitwise_and_(1).bool()

    def covers(self, part: slice | Tensor | None = None) -> Tensor:
        """Return which masks cover each cell, or each cell of `part`: Tensor[A, N] bool."""
        words = self.words if part is None else self.words[part]
        bits = torch.arange(64, device=words.device)
        unpacked = (words[:, :, None] >> bits).bitwise_and_(1).bool()  # A×W×64
        return unpacked.flatten(1)[:, : self.count]

    def intersections(self) -> Tensor:
        """Count the pixels that each pair of masks shares: Tensor[N, N] int64, areas on the diagonal."""
        total = torch.zeros(self.count, self.count, dtype=torch.float64, device=self.words.device)
        for first in range(0, len(self.words), CHUNK):
            covers = self.covers(slice(first, first + CHUNK)).double()
            total += covers.T @ (covers * self.areas[first : first + CHUNK, None])
        return total.long()  # exact: sums of integers below 2^53


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
