"""The partition of an image by N masks: pixels that the same masks cover are one cell.

Whatever treats pixels by the masks that cover them, treats the pixels of a cell alike. A hundred masks make
some thousand cells of a million pixels, and every question about areas, overlaps or owners is answered
exactly on those.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from refine.ops.masks import MaskRuns
from refine.ops.runs import flatnonzero, run_lengths

CHUNK = 1 << 16
"""Cells whose membership is unpacked at a time."""


@dataclass
class Cells:
    """A cells over R spans (runs of pixels covered by the same masks), N masks.

    Attributes:
        count: N.
        starts: Tensor[R] int64, flat index of the first pixel of each span, rising; the first is 0.
        cell: Tensor[R] int64, 0..A-1, cell of each span.
        words: Tensor[A, W] int64, bit i % 64 of word i // 64: mask i covers the cell.
        areas: Tensor[A] int64, pixels.
    """

    count: int
    starts: Tensor
    cell: Tensor
    words: Tensor
    areas: Tensor

    def covered_by(self, mask: int) -> Tensor:
        """Tensor[A] bool: the cells that one mask covers."""
        return (self.words[:, mask // 64] >> (mask % 64)).bitwise_and_(1).bool()

    def covers(self, part: slice | Tensor | None = None) -> Tensor:
        """Tensor[A, N] bool (or of some cells): which masks cover which cells."""
        words = self.words if part is None else self.words[part]
        bits = torch.arange(64, device=words.device)
        unpacked = (words[:, :, None] >> bits).bitwise_and_(1).bool()  # A×W×64
        return unpacked.flatten(1)[:, : self.count]

    def intersections(self) -> Tensor:
        """Pixels that two masks share: Tensor[N, N] int64, areas on the diagonal."""
        total = torch.zeros(self.count, self.count, dtype=torch.float64, device=self.words.device)
        for first in range(0, len(self.words), CHUNK):
            covers = self.covers(slice(first, first + CHUNK)).double()
            total += covers.T @ (covers * self.areas[first : first + CHUNK, None])
        return total.long()  # exact: sums of integers below 2^53


def cells_of(runs: MaskRuns) -> Cells:
    """Partition an image by masks.

    Args:
        runs: N masks, whose runs do not overlap within a mask.
    """
    device, total = runs.start.device, runs.size[0] * runs.size[1]
    edges = torch.cat([runs.start.new_zeros(1), runs.start, runs.end])
    positions, place = torch.unique(edges, return_inverse=True)
    words = torch.zeros(len(positions), -(-runs.count // 64) or 1, dtype=torch.int64, device=device)
    # A mask's bit goes on where a run starts and off where it ends. Runs of one mask follow each other, so
    # adding and subtracting the bit is that, and a running sum (modulo 2^64) holds the bits of every span.
    word, bit = runs.mask // 64, torch.ones_like(runs.mask) << (runs.mask % 64)
    begin, end = place[1:].chunk(2)
    words.index_put_((begin, word), bit, accumulate=True)
    words.index_put_((end, word), -bit, accumulate=True)
    words = words.cumsum(0)
    inside = flatnonzero(positions < total)  # a run may end with the image
    positions, words = positions[inside], words[inside]

    # Equal spans side by side: sort by a hash of their words. Where spans differ a new cell starts, so that
    # a collision could split a cell, which does no harm, but never join two.
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
