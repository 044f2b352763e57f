"""Unknown Erasing (UE): uncertain regions of the semantic map become void.

A region is what becomes one 4-connected component when all pixels of a class are dilated by r (a square of
2r + 1); its score is the mean confidence of the original pixels. Instead of dilating, this groups pixels
directly. With D = 2r + 1, two pixels of a class touch after dilation if and only if they are at most D
apart in either direction and not D apart in both. So, with the image cut into bands of D columns,

- within a band only rows matter: a gap of more than D rows separates groups ("clusters");
- between neighbouring bands, row y of one band touches the cluster found within D rows of y in the other
  (there is at most one above and one below, since clusters are more than D rows apart) if their nearest
  pixels are close enough;
- bands that are not neighbours never touch.

That costs time for the runs of the map, whatever r and the number of classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from refine.ops.runs import flatnonzero, run_lengths, run_starts, run_sums, spread
from refine.structures import VOID

KEPT = -1
"""Number of what no erased region holds."""
FAR = 1 << 40
"""A column that is near nothing."""


@dataclass
class _Rows:
    """Rows of clusters: what one class occupies of one row in one band; E of them.

    Attributes:
        key: Tensor[E] int64, (class · bands + band) · height + row, rising.
        cluster: Tensor[E] int64, 0..K-1, rising.
        left, right: Tensor[E] int64, its first and last column.
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
        labels: Tensor[H, W] int64, classes or `VOID`.
        confidence: Tensor[H, W] float, 0-1, of the label.
        radius: r of the dilation, in pixels.
        threshold: mean confidence below which a region is erased.
        first_class: classes below are left as they are.

    Returns:
        Tensor[H, W] int64, erased pixels `VOID`.
    """
    return torch.where(unknown_regions(labels, confidence, radius, threshold, first_class) != KEPT, VOID, labels)


def erase_dilated(
    labels: Tensor, probabilities: Tensor, radius: int, threshold: float, first_class: int = 0
) -> Tensor:
    """Erase by the paper's literal reading: a region's score is its class's mean probability where dilated.

    Unlike the mean over the original pixels, that erases small regions whatever their confidence: around them
    other classes are likely.

    Args:
        labels: Tensor[H, W] int64, classes or `VOID`.
        probabilities: Tensor[C, H, W] float, 0-1, of each class.
        radius, threshold, first_class: as in `erase_unknown`.

    Returns:
        Tensor[H, W] int64, erased pixels `VOID`.
    """
    everything = 2.0  # a threshold above any confidence, so that all regions get a number
    regions = unknown_regions(labels, torch.zeros_like(probabilities[0]), radius, everything, first_class)
    names, regions = torch.unique(regions, return_inverse=True)  # KEPT comes first, if it occurs
    first = int(len(names) > 0 and names[0] == KEPT)
    total = probabilities.new_zeros(2, len(names), dtype=torch.float64)
    for c in torch.unique(labels[labels >= first_class]).tolist():
        # A pixel within reach of two regions would have joined them, so that the maximum is the only one.
        own = torch.where(labels == c, regions + 1, 0)[None, None].double()
        for kernel, padding in (((2 * radius + 1, 1), (radius, 0)), ((1, 2 * radius + 1), (0, radius))):
            own = F.max_pool2d(own, kernel, 1, padding)
        place = own[0, 0].long() - 1
        inside = place >= 0
        total[0].index_add_(0, place[inside], probabilities[c][inside].double())
        total[1].index_add_(0, place[inside], torch.ones_like(place[inside], dtype=torch.float64))
    erased = total[0] < threshold * total[1]
    erased[:first] = False
    return torch.where(erased[regions], VOID, labels)


def unknown_regions(
    labels: Tensor, confidence: Tensor, radius: int, threshold: float, first_class: int = 0
) -> Tensor:
    """Number the regions that `erase_unknown` erases.

    Args:
        labels, confidence, radius, threshold, first_class: as there.

    Returns:
        Tensor[H, W] int64, a region's number (not negative, not consecutive), or `KEPT`.
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
    """`unknown_regions` on runs.

    Args:
        labels: Tensor[R] int64, of each run.
        confidence: Tensor[R] float64, sum over each run.
        starts, lengths: Tensor[R] int64; no run crosses a multiple of 2·radius + 1 columns.
        size: (height, width).
        radius, threshold, first_class: as in `erase_unknown`.

    Returns:
        Tensor[R] int64, the number of the region that each run is erased with, or `KEPT`.
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
    rows, place = _gather_rows(key, left, left + length - 1, size[0], reach)
    group = _join(*_links(rows, size[0], bands, reach), int(rows.cluster[-1]) + 1)[rows.cluster[place]]
    total = torch.zeros(2, int(group.max()) + 1, dtype=torch.float64, device=labels.device)
    total[0].index_add_(0, group, confidence[eligible])
    total[1].index_add_(0, group, length.double())
    regions[eligible] = torch.where((total[0] < threshold * total[1])[group], group, KEPT)
    return regions


def _gather_rows(key: Tensor, left: Tensor, right: Tensor, height: int, reach: int) -> tuple[_Rows, Tensor]:
    """Collect the runs with the same key, and cut where more than `reach` rows lie between.

    Returns:
        The rows, and Tensor[R] int64: which row each run belongs to.
    """
    order = torch.argsort(key, stable=True)  # runs of one row stay in the order of their columns
    ordered = key[order]
    change = torch.ones(len(key) + 1, dtype=torch.bool, device=key.device)
    torch.ne(ordered[1:], ordered[:-1], out=change[1:-1])
    place = torch.empty_like(key)
    place[order] = change[:-1].cumsum(0) - 1
    first, last = order[change[:-1]], order[change[1:]]
    key = key[first]
    band = key.div(height, rounding_mode="floor")
    cut = torch.ones(len(key), dtype=torch.bool, device=key.device)
    torch.logical_or(torch.diff(band) > 0, torch.diff(key) > reach, out=cut[1:])
    return _Rows(key, cut.cumsum(0) - 1, left[first], right[last]), place


def _links(rows: _Rows, height: int, bands: int, reach: int) -> tuple[Tensor, Tensor]:
    """Clusters of neighbouring bands that touch: Tensor[L] int64 each."""
    band, row = rows.key.div(height, rounding_mode="floor"), rows.key % height
    here = flatnonzero((band + 1) % bands > 0)  # has a band to its right
    row, right, cluster = row[here], rows.right[here], rows.cluster[here]
    target = rows.key[here] + height  # the same row of that band
    up, down = row.clamp(max=reach), (height - row).clamp(max=reach)  # as far as the image goes
    # Entries there: first to middle - 1 are above, middle to last - 1 from the same row on downwards.
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
        # Exactly `reach` rows away the column must be one nearer.
        corner = corner.clamp(max=end)
        near = is_corner & (rows.left[corner] - right < reach)
        links.append((pairs + rows.cluster[corner])[near])
    distinct = torch.unique_consecutive(torch.cat(links))  # neighbouring rows mostly say the same
    return distinct.div(clusters, rounding_mode="floor"), distinct % clusters


class _RangeMin:
    """Minimum over ranges of at most `longest` elements: tables of the minima over 1, 2, 4, … elements."""

    def __init__(self, values: Tensor, longest: int) -> None:
        tables = [values]
        while 2 << (len(tables) - 1) <= longest:
            step = 1 << (len(tables) - 1)
            shifted = torch.cat([tables[-1][step:], values.new_full((min(step, len(values)),), FAR)])
            tables.append(torch.minimum(tables[-1], shifted[: len(values)]))
        self.tables = torch.stack(tables)

    def __call__(self, begin: Tensor, end: Tensor) -> Tensor:
        """Of elements begin..end-1, Tensor[n] int64 each; `FAR` where there is none."""
        length = (end - begin).clamp(min=1)
        level = length.double().log2().floor().long()
        last = self.tables.shape[1] - 1
        first_half = self.tables[level, begin.clamp(max=last)]
        second_half = self.tables[level, (end - (1 << level)).clamp(0, last)]
        return torch.where(end > begin, torch.minimum(first_half, second_half), FAR)


def _join(one: Tensor, other: Tensor, count: int) -> Tensor:
    """Connected components: links Tensor[L] int64 each among `count` nodes -> Tensor[count] int64, a name."""
    name = torch.arange(count, device=one.device)
    while True:
        smaller = torch.minimum(name[one], name[other])
        joined = name.clone()
        for end in (name[one], name[other], one, other):
            joined.scatter_reduce_(0, end, smaller, "amin")
        joined = joined[joined]
        if torch.equal(joined, name):
            return name
        name = joined
