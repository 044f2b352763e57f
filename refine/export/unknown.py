"""Unknown Erasing on runs, as `refine.fusion.unknown`, on dense tables whose sizes are known before their contents.

With D = 2r + 1 and the image split into bands of D columns, each row of a band has one entry per class: the first
and the last column of the class. Within a region, entries of a band are D or fewer rows apart; entries of
neighbouring bands touch if they are at most D apart along both axes and not exactly D along both.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from refine.export.cells import sums
from refine.export.loops import Tensors, while_loop

FAR = 1 << 40
"""Column beyond the reach of any other column."""


@dataclass
class Runs:
    """Runs of pixels of one row.

    Attributes:
        row, left: Tensor[R] int64, row and first column.
        length: Tensor[R] int64, number of pixels.
        labels: Tensor[R] int64, class.
        confidence: Tensor[R] float64, sum of the confidence of the class.
    """

    row: Tensor
    left: Tensor
    length: Tensor
    labels: Tensor
    confidence: Tensor


def is_unknown(
    runs: Runs, size: tuple[int, int], reach: Tensor, threshold: Tensor, first_class: int, num_classes: int
) -> Tensor:
    """Return which runs Unknown Erasing erases, Tensor[R] bool.

    Args:
        runs: runs, none of which crosses a multiple of `reach` columns.
        size: (height, width) in pixels.
        reach: D = 2r + 1, Tensor[] int64.
        threshold: mean confidence, 0-1, below which a region is erased, Tensor[] float64.
        first_class: classes below this index are never erased.
        num_classes: number of classes.
    """
    height, width = size
    d: int = reach.item()  # type: ignore[assignment]
    torch._check(d >= 1)
    bands = (width + d - 1) // d
    rows = height + d  # entries of a band, of which D lie below the image
    entries = d + (num_classes - first_class) * bands * rows  # D above the first band
    total = entries + rows + 1
    band = torch.div(runs.left, reach, rounding_mode="floor")
    eligible = runs.labels >= first_class
    entry = d + ((runs.labels - first_class) * bands + band) * rows + runs.row
    entry = torch.where(eligible, entry, total - 1)
    left = torch.full((total,), FAR).scatter_reduce(0, entry, runs.left, "amin")
    right = torch.full((total,), -FAR).scatter_reduce(0, entry, runs.left + runs.length - 1, "amax")
    left, right = left[:-1], right[:-1]

    index = torch.arange(total - 1)
    present = left < FAR
    before = torch.cat([torch.zeros(1, dtype=torch.int64), present.long().cumsum(0)])[:-1]
    begins = present & (before == before[(index - d).clamp(min=0)])
    cluster = (begins.long().cumsum(0) - 1).clamp(min=0)  # of the last entry up to here
    one, other = _links(left, right, present, cluster, height, bands, rows, d, reach)
    group = _join(one, other, total)[cluster]
    of_run = torch.where(eligible, group[entry.clamp(max=total - 2)], total - 1)
    confidence, pixels = sums(of_run, runs.confidence, total), sums(of_run, runs.length, total)
    return eligible & (confidence < threshold * pixels)[of_run]


def _links(
    left: Tensor,
    right: Tensor,
    present: Tensor,
    cluster: Tensor,
    height: int,
    bands: int,
    rows: int,
    d: int,
    reach: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the pairs of clusters of neighbouring bands that touch: Tensor[L] int64 each, L at least 1."""
    index = torch.arange(left.shape[0])
    last = left.shape[0] - 1
    nearest = _sliding_minimum(left, reach)
    group = torch.div(index - d, rows, rounding_mode="floor")  # class · bands + band
    band = group % torch.full((), bands, dtype=torch.int64)
    here = present & (band < bands - 1) & (index - d - group * rows < height)
    beside = (index + rows).clamp(max=last)  # the same row of the next band
    ones, others = [cluster[:1]], [cluster[:1]]
    for first, most in ((beside - (d - 1), d), (beside, d)):  # D rows up to, and D rows from, the same row
        near = here & (nearest[first.clamp(0, last)] - right <= most)
        ones.append(cluster[near])
        others.append(cluster[(first + (d - 1)).clamp(0, last)][near])
    for corner in (beside - d, beside + d):  # exactly D rows away, fewer than D columns
        corner = corner.clamp(0, last)
        near = here & (left[corner] - right < d)
        ones.append(cluster[near])
        others.append(cluster[corner][near])
    return torch.cat(ones), torch.cat(others)


def _sliding_minimum(values: Tensor, length: Tensor) -> Tensor:
    """Return the minimum of `length` elements from each on: Tensor[n] int64 -> Tensor[n]."""
    index = torch.arange(values.shape[0])
    last = values.shape[0] - 1

    def running(span: Tensor, minimum: Tensor, length: Tensor, index: Tensor) -> Tensor:
        return 2 * span <= length

    def double(span: Tensor, minimum: Tensor, length: Tensor, index: Tensor) -> Tensors:
        following = torch.minimum(index + span, index[-1:])
        return 2 * span, torch.minimum(minimum, minimum[following])

    state = (torch.ones((), dtype=torch.int64), values.clone())
    span, minimum = while_loop(running, double, state, (length, index))
    return torch.minimum(minimum, minimum[(index + length - span).clamp(max=last)])


def _join(one: Tensor, other: Tensor, count: int) -> Tensor:
    """Label connected components: links Tensor[L] int64 each among `count` nodes -> Tensor[count] int64."""

    def running(component: Tensor, changed: Tensor, one: Tensor, other: Tensor) -> Tensor:
        return changed.clone()

    def step(component: Tensor, changed: Tensor, one: Tensor, other: Tensor) -> Tensors:
        joined = component
        smaller = torch.minimum(component[one], component[other])
        for end in (component[one], component[other], one, other):
            joined = joined.scatter_reduce(0, end, smaller, "amin")
        joined = joined[joined]
        return joined, (joined != component).any()

    state = (torch.arange(count), torch.ones((), dtype=torch.bool))
    return while_loop(running, step, state, (one, other))[0]
