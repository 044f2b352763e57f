"""Unknown Erasing (UE): uncertain regions of the semantic map become void.

A region is a 4-connected component of the pixels of one class after dilation by r (a square of side 2r + 1);
its score is the mean confidence of the original pixels. Pixels are grouped directly, without dilating. With
D = 2r + 1, two pixels of a class touch after dilation if and only if they are at most D apart along both axes
and not exactly D apart along both. With the image split into bands of D columns,

- within a band only rows matter: a gap of more than D rows separates groups ("clusters");
- between neighbouring bands, row y of one band touches a cluster within D rows of y in the other (at most one
  above and one below, since clusters are more than D rows apart) if their nearest pixels are close enough;
- bands that are not neighbours never touch.

The cost depends on the number of runs of the map, not on r or the number of classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from refine.ops.runs import flatnonzero, run_lengths, run_starts, run_sums, spread
from refine.structures import VOID

KEPT = -1
"""Region number of pixels that are not erased."""
FAR = 1 << 40
"""Column index beyond the reach of any other column."""


@dataclass
class _Rows:
    """E rows of clusters, each the pixels of one class in one image row of one band.

    Attributes:
        key: Tensor[E] int64, (class · bands + band) · height + row, increasing.
        cluster: Tensor[E] int64, cluster of each row, 0..K-1, non-decreasing.
        left, right: Tensor[E] int64, first and last column of each row.
    """

    key: Tensor
    cluster: Tensor
    left: Tensor
    right: Tensor


def erase_unknown(
    labels: Tensor, confidence: Tensor, radius: int, threshold: float, first_class: int = 0
) -> Tensor:
    """Erase the regions whose mean confidence is below the threshold.

    Args:
        labels: Tensor[H, W] int64, contiguous class or `VOID`.
        confidence: Tensor[H, W] float, 0-1, confidence of the label.
        radius: r, radius of the dilation in pixels.
        threshold: mean confidence, 0-1, below which a region is erased.
        first_class: classes below this index are never erased.

    Returns:
        Tensor[H, W] int64, the labels with erased pixels set to `VOID`.
    """
    return torch.where(unknown_regions(labels, confidence, radius, threshold, first_class) != KEPT, VOID, labels)


def erase_dilated(
    labels: Tensor, probabilities: Tensor, radius: int, threshold: float, first_class: int = 0
) -> Tensor:
    """Erase by a literal reading of the paper: the score is the mean probability over the dilated region.

    Unlike the mean over the original pixels, this erases small regions whatever their confidence, because the
    pixels around them are likely to have other classes.

    Args:
        labels: Tensor[H, W] int64, contiguous class or `VOID`.
        probabilities: Tensor[C, H, W] float, 0-1, probability of each class.
        radius, threshold, first_class: as in `erase_unknown`.

    Returns:
        Tensor[H, W] int64, erased pixels `VOID`.
    """
    everything = 2.0  # a threshold above any confidence, so that all regions are numbered
    regions = unknown_regions(labels, torch.zeros_like(probabilities[0]), radius, everything, first_class)
    numbers, regions = torch.unique(regions, return_inverse=True)  # KEPT comes first if it occurs
    first = int(len(numbers) > 0 and numbers[0] == KEPT)
    total = probabilities.new_zeros(2, len(numbers), dtype=torch.float64)
    for c in torch.unique(labels[labels >= first_class]).tolist():
        # Regions of one class that reach a common pixel would be one region, so the maximum is unambiguous.
        own = torch.where(labels == c, regions + 1, 0)[None, None].double()
        for kernel, padding in (((2 * radius + 1, 1), (radius, 0)), ((1, 2 * radius + 1), (0, radius))):
            own = F.max_pool2d(own, kernel, 1, padding)
        region = own[0, 0].long() - 1
        inside = region >= 0
        total[0].index_add_(0, region[inside], probabilities[c][inside].double())
        total[1].index_add_(0, region[inside], torch.ones_like(region[inside], dtype=torch.float64))
    erased = total[0] < threshold * total[1]
    erased[:first] = False
    return torch.where(erased[regions], VOID, labels)


def unknown_regions(
    labels: Tensor, confidence: Tensor, radius: int, threshold: float, first_class: int = 0
) -> Tensor:
    """Number the regions that `erase_unknown` erases.

    Args:
        labels, confidence, radius, threshold, first_class: as in `erase_unknown`.

    Returns:
        Tensor[H, W] int64, region number (at least 0, not consecutive), or `KEPT`.
    """
    height, width = labels.shape
    starts = run_starts(labels, width=2 * radius + 1)
    lengths = run_lengths(starts, height * width)
    classes, sums = labels.reshape(-1).index_select(0, starts), run_sums(confidence, starts)
    regions = unknown_runs(classes, sums, starts, lengths, (height, width), radius, threshold, first_class)
    return spread(regions, lengths, (height, width))


def unknown_runs(
    labels: Tensor,
    confidence: Tensor,
    starts: Tensor,
    lengths: Tensor,
    size: tuple[int, int],
    radius: int,
    threshold: float,
    first_class: int = 0,
) -> Tensor:
    """Compute `unknown_regions` on runs.

    Args:
        labels: Tensor[R] int64, contiguous class of each run, or `VOID`.
        confidence: Tensor[R] float64, confidence summed over each run.
        starts, lengths: Tensor[R] int64, flat index of the first pixel and number of pixels of each run; no run
            may cross a multiple of 2·radius + 1 columns.
        size: (height, width) in pixels.
        radius, threshold, first_class: as in `erase_unknown`.

    Returns:
        Tensor[R] int64, number of the erased region that each run belongs to, or `KEPT`.
    """
    reach = 2 * radius + 1
    regions = torch.full((len(labels),), KEPT, device=labels.device)
    eligible = flatnonzero(labels >= max(first_class, 0))
    if len(eligible) == 0:
        return regions
    start, length = starts[eligible], lengths[eligible]
    row, left = start.div(size[1], rounding_mode="floor"), start % size[1]
    bands = -(-size[1] // reach)
    key = (labels[eligible] * bands + left.div(reach, rounding_mode="floor")) * size[0] + row
    rows, row_index = _gather_rows(key, left, left + length - 1, size[0], reach)
    group = _join(*_links(rows, size[0], bands, reach), int(rows.cluster[-1]) + 1)[rows.cluster[row_index]]
    total = torch.zeros(2, int(group.max()) + 1, dtype=torch.float64, device=labels.device)
    total[0].index_add_(0, group, confidence[eligible])
    total[1].index_add_(0, group, length.double())
    regions[eligible] = torch.where((total[0] < threshold * total[1])[group], group, KEPT)
    return regions


def _gather_rows(key: Tensor, left: Tensor, right: Tensor, height: int, reach: int) -> tuple[_Rows, Tensor]:
    """Merge runs with the same key, and begin a new cluster after a gap of more than `reach` rows.

    Returns:
        The rows, and the index of the row that each run belongs to, Tensor[R] int64.
    """
    order = torch.argsort(key, stable=True)  # runs of one row stay sorted by column
    ordered = key[order]
    change = torch.ones(len(key) + 1, dtype=torch.bool, device=key.device)
    torch.ne(ordered[1:], ordered[:-1], out=change[1:-1])
    row_index = torch.empty_like(key)
    row_index[order] = change[:-1].cumsum(0) - 1
    first, last = order[change[:-1]], order[change[1:]]
    key = key[first]
    band = key.div(height, rounding_mode="floor")
    cut = torch.ones(len(key), dtype=torch.bool, device=key.device)
    torch.logical_or(torch.diff(band) > 0, torch.diff(key) > reach, out=cut[1:])
    return _Rows(key, cut.cumsum(0) - 1, left[first], right[last]), row_index


def _links(rows: _Rows, height: int, bands: int, reach: int) -> tuple[Tensor, Tensor]:
    """Find pairs of clusters of neighbouring bands that touch: Tensor[L] int64 each."""
    band, row = rows.key.div(height, rounding_mode="floor"), rows.key % height
    here = flatnonzero((band + 1) % bands > 0)  # has a band to its right
    row, right, cluster = row[here], rows.right[here], rows.cluster[here]
    target = rows.key[here] + height  # key of the same row in that band
    up, down = row.clamp(max=reach), (height - row).clamp(max=reach)  # limited to the image
    # Entries of that band: first..middle-1 lie above the row, middle..last-1 at the row or below.
    first, middle, last = torch.searchsorted(rows.key, torch.stack([target - up, target, target + down]))
    end = len(rows.key) - 1
    first_is_corner = (up == reach) & (rows.key[first.clamp(max=end)] == target - reach)
    same_row = rows.key[middle.clamp(max=end)] == target
    last_is_corner = (row + reach < height) & (rows.key[last.clamp(max=end)] == target + reach)
    nearest = _RangeMin(rows.left, reach)
    clusters = int(rows.cluster[-1]) + 1
    pairs = cluster * clusters  # plus the other cluster
    links = []
    for begin, stop, corner, is_corner in (
        (first + first_is_corner.long(), middle + same_row.long(), first, first_is_corner),
        (middle, last, last, last_is_corner),
    ):
        near = nearest(begin, stop) - right <= reach
        links.append((pairs + rows.cluster[begin.clamp(max=end)])[near])
        # At exactly `reach` rows the columns must be less than `reach` apart.
        corner = corner.clamp(max=end)
        near = is_corner & (rows.left[corner] - right < reach)
        links.append((pairs + rows.cluster[corner])[near])
    distinct = torch.unique_consecutive(torch.cat(links))  # neighbouring rows mostly give the same pair
    return distinct.div(clusters, rounding_mode="floor"), distinct % clusters


class _RangeMin:
    """Minimum over ranges of at most `longest` elements, by tables of minima over 1, 2, 4, … elements."""

    def __init__(self, values: Tensor, longest: int) -> None:
        tables = [values]
        while 2 << (len(tables) - 1) <= longest:
            step = 1 << (len(tables) - 1)
            shifted = torch.cat([tables[-1][step:], values.new_full((min(step, len(values)),), FAR)])
            tables.append(torch.minimum(tables[-1], shifted[: len(values)]))
        self.tables = torch.stack(tables)

    def __call__(self, begin: Tensor, end: Tensor) -> Tensor:
        """Return the minimum of elements begin..end-1, Tensor[n] int64 each; `FAR` for an empty range."""
        length = (end - begin).clamp(min=1)
        level = length.double().log2().floor().long()
        last = self.tables.shape[1] - 1
        first_half = self.tables[level, begin.clamp(max=last)]
        second_half = self.tables[level, (end - (1 << level)).clamp(0, last)]
        return torch.where(end > begin, torch.minimum(first_half, second_half), FAR)


def _join(one: Tensor, other: Tensor, count: int) -> Tensor:
    """Label connected components: links Tensor[L] int64 each among `count` nodes -> Tensor[count] int64."""
    component = torch.arange(count, device=one.device)
    while True:
        smaller = torch.minimum(component[one], component[other])
        joined = component.clone()
        for end in (component[one], component[other], one, other):
            joined.scatter_reduce_(0, end, smaller, "amin")
        joined = joined[joined]
        if torch.equal(joined, component):
            return component
        component = joined
