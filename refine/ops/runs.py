"""Run-length representation of label maps: equal neighbours of a row form one run.

A run is a stretch of pixels of the flattened image, usually within one row. A map of an 800×1333 image has a
million pixels but only about 50,000 runs, so whatever is constant over a run is computed per run. The three
functions that touch every pixel use NumPy on the CPU, where its loops are several times faster than torch's;
the tests check that both versions agree.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def flatnonzero(mask: Tensor) -> Tensor:
    """Return the increasing flat indices of the true elements: Tensor[...] bool -> Tensor[n] int64."""
    if mask.device.type != "cpu":
        return torch.nonzero(mask.reshape(-1)).squeeze(1)
    flat = np.ascontiguousarray(mask.numpy()).reshape(-1)
    whole = flat.size // 8 * 8
    words = np.flatnonzero(flat[:whole].view(np.uint64) != 0)  # eight elements at a time
    if len(words) > flat.size // 64:
        return torch.from_numpy(np.flatnonzero(flat))
    candidates = (words[:, None] * 8 + np.arange(8)).reshape(-1)
    rest = np.arange(whole, flat.size)
    candidates = np.concatenate([candidates, rest])
    return torch.from_numpy(candidates[flat[candidates]])


def run_starts(labels: Tensor, cuts: Tensor | None = None, width: int | None = None) -> Tensor:
    """Find where runs of equal labels begin.

    Args:
        labels: Tensor[H, W] of any dtype; runs do not continue into the next row.
        cuts: Tensor[n] int64, additional flat indices at which a run must begin.
        width: runs must also begin at columns width, 2·width, …

    Returns:
        Tensor[R] int64, flat indices, increasing from 0.
    """
    begins = torch.empty(labels.shape, dtype=torch.bool, device=labels.device)
    torch.ne(labels[:, 1:], labels[:, :-1], out=begins[:, 1:])
    begins[:, :: width or labels.shape[1]] = True
    if cuts is not None:
        begins.view(-1)[cuts] = True
    return flatnonzero(begins)


def run_lengths(starts: Tensor, total: int) -> Tensor:
    """Return the length in pixels of contiguous runs that cover `total` pixels: Tensor[R] int64."""
    return torch.diff(starts, append=starts.new_full((1,), total))


def run_sums(values: Tensor, starts: Tensor) -> Tensor:
    """Sum values over each run.

    Args:
        values: Tensor[H, W] float.
        starts: Tensor[R] int64, flat indices, increasing from 0; each run ends where the next begins.

    Returns:
        Tensor[R] float64.
    """
    flat = values.reshape(-1).to(torch.promote_types(values.dtype, torch.float32))
    if values.device.type == "cpu":
        return torch.from_numpy(np.add.reduceat(flat.numpy(), starts.numpy())).double()
    totals = torch.cat([flat.new_zeros(1, dtype=torch.float64), flat.cumsum(0, dtype=torch.float64)])
    return torch.diff(totals[torch.cat([starts, starts.new_full((1,), flat.numel())])])


def spread(values: Tensor, lengths: Tensor, size: tuple[int, int]) -> Tensor:
    """Assign to every pixel the value of its run: Tensor[R], Tensor[R] int64 -> Tensor[size]."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.repeat(values.numpy(), lengths.numpy())).view(size)
    return values.repeat_interleave(lengths, output_size=size[0] * size[1]).view(size)
