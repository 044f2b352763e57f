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

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from refine.ops.links import connect
from refine.ops.runs import flatnonzero, run_lengths, run_starts, run_sums, spread
from refine.structures import VOID

KEPT = -1
"""Region number of pixels that are not erased."""
FAR = 1 << 40
"""Column index beyond the reach of any other column."""


@dataclass
class Rows:
    """E rows of regions: the pixels of one class in one image row of one band of columns.

    Attributes:
        key: Tensor[E] int64, (class · bands + band) · height + row, increasing.
        left, right: Tensor[E] int64, first and last column of each row.
        confidence: Tensor[E] float64, confidence summed over the pixels of each row.
        pixels: Tensor[E] int64, number of pixels of each row.
    """

    key: Tensor
    left: Tensor
    right: Tensor
    confidence: Tensor
    pixels: Tensor


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
    regions = unknown_dilated_regions(labels, probabilities, radius, threshold, first_class)
    return torch.where(regions != KEPT, VOID, labels)


def unknown_dilated_regions(
    labels: Tensor, probabilities: Tensor, radius: int, threshold: float, first_class: int = 0
) -> Tensor:
    """Number the regions that `erase_dilated` erases; arguments as there, result as of `unknown_regions`."""
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
        inside = flatnonzero(own > 0)
        region = own.view(-1)[inside].long() - 1
        values = probabilities[c].reshape(-1)[inside].double()
        total.index_add_(1, region, torch.stack([values, torch.ones_like(values)]))
    erased = total[0] < threshold * total[1]
    erased[:first] = False
    return torch.where(erased, numbers, KEPT)[regions]


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
    rows, row_of_run = gather_rows(labels, confidence, starts, lengths, size, radius, first_class)
    regions = torch.full((len(labels),), KEPT, device=labels.device)
    regions[row_of_run >= 0] = unknown_rows(rows, size, radius, threshold)[row_of_run[row_of_run >= 0]]
    return regions


def gather_rows(
    labels: Tensor,
    confidence: Tensor,
    starts: Tensor,
    lengths: Tensor,
    size: tuple[int, int],
    radius: int,
    first_class: int = 0,
    top: int = 0,
) -> tuple[Rows, Tensor]:
    """Merge the runs of one class, image row and band of columns.

    Args:
        labels, confidence, starts, lengths, radius, first_class: as in `unknown_runs`.
        size: (height, width) of the whole image in pixels.
        top: row of the image at which the runs begin, if they are those of some of its rows.

    Returns:
        The rows, and the index of the row that each run belongs to, Tensor[R] int64, or -1 for classes that are
        never erased.
    """
    reach, row_of_run = 2 * radius + 1, torch.full((len(labels),), -1, device=labels.device)
    eligible = flatnonzero(labels >= max(first_class, 0))
    start, length = starts[eligible], lengths[eligible]
    row, left = start.div(size[1], rounding_mode="floor") + top, start % size[1]
    bands = -(-size[1] // reach)
    key = (labels[eligible] * bands + left.div(reach, rounding_mode="floor")) * size[0] + row
    order = torch.argsort(key, stable=True)  # runs of one row stay sorted by column
    ordered = key[order]
    change = torch.ones(len(key) + 1, dtype=torch.bool, device=key.device)
    torch.ne(ordered[1:], ordered[:-1], out=change[1:-1])
    row_index = torch.empty_like(key)
    row_index[order] = change[:-1].cumsum(0) - 1
    row_of_run[eligible] = row_index
    first, last = order[change[:-1]], order[change[1:]]
    totals = torch.zeros(2, len(first), dtype=torch.float64, device=key.device)
    totals[0].index_add_(0, row_index, confidence[eligible])
    totals[1].index_add_(0, row_index, length.double())
    rows = Rows(key[first], left[first], (left + length - 1)[last], totals[0], totals[1].long())
    return rows, row_of_run


def join_rows(parts: Sequence[Rows]) -> Rows:
    """Join the rows of bands of one image that have no image row in common."""
    names = [field.name for field in fields(Rows)]
    joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    order = torch.argsort(joined["key"])
    return Rows(**{name: values[order] for name, values in joined.items()})


def unknown_rows(rows: Rows, size: tuple[int, int], radius: int, threshold: float) -> Tensor:
    """Number the regions whose mean confidence is below the threshold.

    Args:
        rows: the E rows of the whole image.
        size: (height, width) of the image in pixels.
        radius, threshold: as in `erase_unknown`.

    Returns:
        Tensor[E] int64, number of the erased region that each row belongs to, or `KEPT`.
    """
    if not len(rows.key):
        return rows.key
    reach = 2 * radius + 1
    band = rows.key.div(size[0], rounding_mode="floor")
    cut = torch.ones(len(band), dtype=torch.bool, device=band.device)
    torch.logical_or(torch.diff(band) > 0, torch.diff(rows.key) > reach, out=cut[1:])
    cluster = cut.cumsum(0) - 1
    links = _links(rows, cluster, size[0], -(-size[1] // reach), reach)
    group = connect(*links, int(cluster[-1]) + 1)[cluster]
    total = torch.zeros(2, int(group.max()) + 1, dtype=torch.float64, device=group.device)
    total[0].index_add_(0, group, rows.confidence)
    total[1].index_add_(0, group, rows.pixels.double())
    return torch.where((total[0] < threshold * total[1])[group], group, KEPT)


def _links(rows: Rows, cluster: Tensor, height: int, bands: int, reach: int) -> tuple[Tensor, Tensor]:
    """Find pairs of clusters of neighbouring bands that touch: Tensor[L] int64 each.

    Args:
        rows: the E rows of the image.
        cluster: Tensor[E] int64, cluster of each row, 0..K-1, non-decreasing.
        height, bands, reach: rows of the image, and number and width of its bands.
    """
    band, row = rows.key.div(height, rounding_mode="floor"), rows.key % height
    here = flatnonzero((band + 1) % bands > 0)  # has a band to its right
    row, right = row[here], rows.right[here]
    target = rows.key[here] + height  # key of the same row in that band
    up, down = row.clamp(max=reach), (height - row).clamp(max=reach)  # limited to the image
    # Entries of that band: first..middle-1 lie above the row, middle..last-1 at the row or below.
    first, middle, last = torch.searchsorted(rows.key, torch.stack([target - up, target, target + down]))
    end = len(rows.key) - 1
    first_is_corner = (up == reach) & (rows.key[first.clamp(max=end)] == target - reach)
    same_row = rows.key[middle.clamp(max=end)] == target
    last_is_corner = (row + reach < height) & (rows.key[last.clamp(max=end)] == target + reach)
    nearest = _RangeMin(rows.left, reach)
    clusters = int(cluster[-1]) + 1
    pairs = cluster[here] * clusters  # plus the other cluster
    links = []
    for begin, stop, corner, is_corner in (
        (first + first_is_corner.long(), middle + same_row.long(), first, first_is_corner),
        (middle, last, last, last_is_corner),
    ):
        near = nearest(begin, stop) - right <= reach
        links.append((pairs + cluster[begin.clamp(max=end)])[near])
        # At exactly `reach` rows the columns must be less than `reach` apart.
        corner = corner.clamp(max=end)
        near = is_corner & (rows.left[corner] - right < reach)
        links.append((pairs + cluster[corner])[near])
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
