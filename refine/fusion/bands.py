"""Fusion of an image that does not fit into memory, in bands of rows.

What decides about a segment is its whole area, so the image is read up to three times: for the regions of Unknown
Erasing, for areas, and for the map. In memory are the runs of the masks, the rows of the regions and one band.
The result equals that of `refine.fuse`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from refine.errors import RefineError
from refine.fusion.api import assign, prepare, select
from refine.fusion.config import FusionConfig, Method, check_known
from refine.fusion.merge import FREE
from refine.fusion.segments import Partition, Totals, partition
from refine.fusion.unknown import KEPT, Rows, gather_rows, join_rows, unknown_rows
from refine.ops.links import connect
from refine.ops.masks import MaskRuns, shared_areas
from refine.ops.runs import spread
from refine.structures import VOID, Categories, Instances, PanopticResult, Segment

GROUP = 64
"""Number of instances that are assigned at a time, unless more of them overlap each other: bits of one word."""
MOST_SEGMENTS = 2**24
"""Number of ids of a COCO PNG, 0 included."""
NEUTRAL = 0.5
"""O of pairs for which none is given: neither lies in front."""

ReadBand = Callable[[int, int], tuple[Tensor, Tensor]]
"""(top, bottom) -> those rows of the semantic map and of its confidence: Tensor[h, W] integer and float."""


@dataclass(frozen=True)
class PairScores:
    """O of P pairs of N instances.

    Attributes:
        pairs: Tensor[P, 2] int64, indices (i, j) of the instances, each pair once.
        values: Tensor[P, 2] float, O(i, j) and O(j, i), 0-1.
    """

    pairs: Tensor
    values: Tensor

    def matrix(self, first: int, last: int) -> Tensor:
        """Return O of instances first..last-1, Tensor[n, n] float; pairs must be sorted by their first instance."""
        begin, end = torch.searchsorted(self.pairs[:, 0].contiguous(), torch.tensor([first, last])).tolist()
        one, other = (self.pairs[begin:end] - first).unbind(1)
        matrix = torch.full((last - first, last - first), NEUTRAL)
        matrix[one, other], matrix[other, one] = self.values[begin:end].float().unbind(1)
        return matrix

    def renumbered(self, number: Tensor) -> PairScores:
        """Return the pairs under new numbers, each pair once as (i, j), i < j, with the mean of its values.

        Args:
            number: Tensor[N] int64, new number of each instance, or -1 for one that is left out.
        """
        pairs, values = number[self.pairs], self.values
        known = (pairs >= 0).all(1) & (pairs[:, 0] != pairs[:, 1])
        pairs, values = pairs[known], values[known]
        turned = pairs[:, 0] > pairs[:, 1]
        pairs[turned], values[turned] = pairs[turned].flip(1), values[turned].flip(1)
        distinct, index = torch.unique(pairs, dim=0, return_inverse=True)
        total = torch.zeros(len(distinct), 3).index_add_(
            0, index, torch.cat([values, torch.ones(len(values), 1)], 1)
        )
        return PairScores(distinct, total[:, :2] / total[:, 2:])


@dataclass(frozen=True)
class FusedBands:
    """Panoptic result of an image, whose map is computed band by band.

    Attributes:
        size: (height, width) in pixels.
        segments: segments by increasing id, as in `PanopticResult`.
        categories: categories of the segments.
        bands: function that returns an iterator over the ids of the bands, each Tensor[h, W] int32, from the top.
    """

    size: tuple[int, int]
    segments: list[Segment]
    categories: Categories
    bands: Callable[[], Iterator[Tensor]]

    def result(self) -> PanopticResult:
        """Return the result in memory; RefineError if it has too many segments."""
        if len(self.segments) >= MOST_SEGMENTS:
            raise RefineError(
                f"the image has {len(self.segments)} segments, more than the {MOST_SEGMENTS - 1} of a map"
            )
        return PanopticResult(torch.cat(list(self.bands())), self.segments, self.categories)


def fuse_bands(
    instances: Instances,
    read: ReadBand,
    rows: int,
    *,
    categories: Categories,
    method: Method = "heuristic",
    occlusion: PairScores | None = None,
    ranking: Tensor | None = None,
    config: FusionConfig | None = None,
) -> FusedBands:
    """Fuse instances and a semantic map that is read in bands of rows.

    Args:
        instances: N instances with `runs`, on the CPU.
        read: reads a band of the semantic map.
        rows: number of rows of a band; the last may have fewer.
        categories, method, config: as in `refine.fuse`.
        occlusion: O of the pairs that overlap; required by the learned pairwise rules.
        ranking: Tensor[N] float, score of each instance; required by "srm".

    Raises:
        RefineError: an input of the rule is missing, or Unknown Erasing needs the probabilities of all classes.
    """
    check_known(method)
    config = config or FusionConfig()
    if config.unknown_erasing and config.ue_region == "dilated":
        raise RefineError(
            "fusion.ue_region (--ue-region) 'dilated' needs the whole image in memory; use 'core' with tiles"
        )
    size, count = instances.image_size, len(instances)
    instances, runs, indices, duplicates = prepare(instances, config.score_threshold)
    number = torch.full((count,), -1)
    for n, group in enumerate(duplicates):
        number[group] = n
    occlusion = None if occlusion is None else occlusion.renumbered(number)
    ranking = None if ranking is None else select("ranking", ranking, (count,), indices, duplicates)
    spans = _assign_groups(instances, runs, method, occlusion, ranking, config)
    radius = config.radius_at(size) if config.unknown_erasing else None

    parts = partial(_parts, read, rows, size, spans, radius)
    gather = partial(_gather_rows, size=size, radius=radius, things=categories.num_things)
    erased = torch.zeros(0, dtype=torch.int64)  # sorted keys of rows
    if radius is not None:
        regions = join_rows([gather(part, top)[0] for top, part in parts()])
        erased = regions.key[unknown_rows(regions, size, radius, config.ue_threshold) != KEPT]
    erased_parts = partial(_erased_parts, parts, gather, erased)
    totals = Totals(len(instances), categories, torch.device("cpu"))
    for top, part in erased_parts():
        totals.add(part, top)
    ids = totals.ids(config.stuff_area)

    def bands() -> Iterator[Tensor]:
        for _, part in erased_parts():
            yield spread(ids[totals.values(part)], part.lengths, part.size)

    return FusedBands(size, totals.describe(ids, instances, indices), categories, bands)


def _parts(
    read: ReadBand, rows: int, size: tuple[int, int], spans: tuple[Tensor, Tensor], radius: int | None
) -> Iterator[tuple[int, Partition]]:
    """Read the bands from top to bottom; each comes with its first row."""
    for top in range(0, size[0], rows):
        bottom = min(top + rows, size[0])
        sem_seg, confidence = read(top, bottom)
        yield top, partition(*_span_rows(spans, top, bottom, size[1]), sem_seg, confidence, radius)


def _erased_parts(
    parts: Callable[[], Iterator[tuple[int, Partition]]],
    gather: Callable[[Partition, int], tuple[Rows, Tensor]],
    erased: Tensor,
) -> Iterator[tuple[int, Partition]]:
    """Read the bands as `_parts`, without the labels of rows that Unknown Erasing erases.

    Args:
        parts, gather: `_parts` and `_gather_rows` of the image.
        erased: Tensor[E] int64, keys of the erased rows.
    """
    for top, part in parts():
        if len(erased):
            of_band, row = gather(part, top)
            gone = torch.isin(of_band.key, erased)
            part.labels = torch.where((row >= 0) & gone[row], VOID, part.labels) if len(gone) else part.labels
        yield top, part


def _gather_rows(
    part: Partition, top: int, size: tuple[int, int], radius: int | None, things: int
) -> tuple[Rows, Tensor]:
    """Return the rows of a band for Unknown Erasing, as `gather_rows`; `top` is the first row of the band."""
    assert part.confidence is not None
    assert radius is not None
    return gather_rows(part.labels, part.confidence, part.starts, part.lengths, size, radius, things, top)


def _assign_groups(
    instances: Instances,
    runs: MaskRuns,
    method: Method,
    occlusion: PairScores | None,
    ranking: Tensor | None,
    config: FusionConfig,
) -> tuple[Tensor, Tensor]:
    """Assign the pixels of all masks, some instances at a time that overlap no others.

    Returns:
        Spans that cover the image: Tensor[S] int64, flat index of their first pixels, increasing from 0, and
        Tensor[S] int64, instance that owns each, or `FREE`.
    """
    group = _groups(runs)
    order = torch.argsort(group, stable=True)  # decreasing scores within a group
    instances, runs, group = instances[order], runs[order], group[order]
    ranking = None if ranking is None else ranking[order]
    if occlusion is not None:
        occlusion = _within_groups(occlusion, order.argsort(), group)
    firsts = torch.searchsorted(group, torch.arange(int(group.amax()) + 2 if len(group) else 1))
    run_firsts = torch.searchsorted(runs.mask.contiguous(), firsts).tolist()
    parts = [order.new_zeros(3, 0)]
    for n, (first, last) in enumerate(pairwise(firsts.tolist())):
        own = slice(run_firsts[n], run_firsts[n + 1])
        masks = MaskRuns(runs.size, last - first, runs.mask[own] - first, runs.start[own], runs.end[own])
        scores = None if ranking is None else ranking[first:last]
        matrix = None if occlusion is None else occlusion.matrix(first, last)
        cells, owner = assign(method, instances[first:last], masks, matrix, scores, config)
        ends = torch.cat([cells.starts[1:], cells.starts.new_tensor([runs.size[0] * runs.size[1]])])
        owners = owner[cells.cell]
        parts.append(torch.stack([cells.starts, ends, owners])[:, owners != FREE])
        parts[-1][2] = order[first:last][parts[-1][2]]
    return _with_gaps(*torch.cat(parts, 1).unbind(0))


def _groups(runs: MaskRuns) -> Tensor:
    """Return the group of each mask, Tensor[N] int64; masks that overlap, also through others, share one."""
    pairs, _ = shared_areas(runs)
    component = connect(pairs[:, 0], pairs[:, 1], runs.count)
    sizes = torch.bincount(component, minlength=runs.count).tolist()
    groups, number, filled = [0] * runs.count, -1, GROUP
    for n, size in enumerate(sizes):
        if size:
            if filled + size > GROUP:
                number, filled = number + 1, 0
            filled += size
            groups[n] = number
    return torch.tensor(groups, dtype=torch.int64)[component]


def _within_groups(occlusion: PairScores, rank: Tensor, group: Tensor) -> PairScores:
    """Renumber pairs by rank, leave out those of two groups, and sort them by their first instance."""
    pairs = rank[occlusion.pairs]
    same = group[pairs[:, 0]] == group[pairs[:, 1]]
    pairs, values = pairs[same], occlusion.values[same]
    by_first = torch.argsort(pairs[:, 0], stable=True)
    return PairScores(pairs[by_first], values[by_first])


def _with_gaps(start: Tensor, end: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
    """Sort disjoint spans and fill the gaps between them with `FREE`; see `_assign_groups`."""
    order = torch.argsort(start)
    start, end, owner = start[order], end[order], owner[order]
    starts = torch.stack([torch.cat([start.new_zeros(1), end]), torch.cat([start, start.new_zeros(1)])], 1)
    owners = torch.stack([torch.full_like(starts[:, 0], FREE), torch.cat([owner, owner.new_zeros(1)])], 1)
    starts, owners = starts.flatten()[:-1], owners.flatten()[:-1]  # gap, span, gap, …, gap
    filled = torch.ones(len(starts), dtype=torch.bool)
    filled[:-1] = starts[1:] > starts[:-1]  # leave out empty gaps
    return starts[filled], owners[filled]


def _span_rows(spans: tuple[Tensor, Tensor], top: int, bottom: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the spans of some rows, counted from the first pixel of the rows."""
    starts, owner = spans
    first, last = torch.searchsorted(starts, torch.tensor([top * width, bottom * width - 1]), right=True).tolist()
    return (starts[first - 1 : last] - top * width).clamp(min=0), owner[first - 1 : last]
