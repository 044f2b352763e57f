"""Stitching of the detections of overlapping windows: every object once, and whole.

An object is taken from the window in whose core its centre lies. That window shows all of an object no larger than
the overlap. A larger one may extend over several windows; its parts are recognised by their masks, which agree
where the windows overlap, and joined.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from refine.fusion.bands import PairScores
from refine.inference.tiling.plan import Window
from refine.ops.cells import cells_of
from refine.ops.links import connect
from refine.ops.masks import MaskRuns, join_runs, shared_areas
from refine.structures import Instances

SAME = 0.5
"""IoU, where two windows overlap, above which two masks show the same object."""
SLACK = 0.1
"""Fraction of the side of a box by which its centre may lie outside a core: two windows see it in two places."""


@dataclass(frozen=True)
class Found:
    """Detections of one window, on the CPU and in pixels of the image.

    Attributes:
        window: index of the window.
        instances: n instances with `runs` that lie within rows.
        occlusion: O of the pairs that overlap, or None if the fusion rule does not need it.
        ranking: Tensor[n] float, or None if the fusion rule does not need it.
    """

    window: int
    instances: Instances
    occlusion: PairScores | None = None
    ranking: Tensor | None = None


@dataclass(frozen=True)
class Stitched:
    """Instances of an image with the inputs of its fusion rule; see `fuse_bands`."""

    instances: Instances
    occlusion: PairScores | None
    ranking: Tensor | None


def stitch(found: Sequence[Found], windows: Sequence[Window], size: tuple[int, int]) -> Stitched:
    """Join the detections of all windows of an image of `size` (height, width) in pixels."""
    all_of = _Candidates.of(found, windows, size)
    same = _same_objects(all_of, windows)
    both = all_of.central[same].all(1)
    group = connect(same[both, 0], same[both, 1], len(all_of.window))
    whole = all_of.shows_whole(group, windows)
    best = all_of.best_of(group, whole)
    place = torch.full((len(group),), -1)  # of each group, then of each candidate
    place[group[best]] = torch.arange(len(best))
    place = torch.where(all_of.central, place[group], -1)
    seen_by = place.clone()
    for one, other in (same.unbind(1), same.flip(1).unbind(1)):  # windows that see the object of another's core
        only_seen = all_of.central[other] & ~all_of.central[one]
        seen_by[one[only_seen]] = place[other[only_seen]]
    occlusion = _join_pairs(found, seen_by) if any(part.occlusion is not None for part in found) else None
    return _join_parts(all_of, best, whole[best], place, windows, occlusion)


@dataclass(frozen=True)
class _Candidates:
    """The n detections of all windows.

    Attributes:
        instances: detections with `runs`.
        ranking: Tensor[n] float, or None.
        window: Tensor[n] int64, index of the window of each.
        outside: Tensor[n] float, pixels by which the centre of its box lies outside the core.
        central: Tensor[n] bool, whether the centre lies in the core, or nearly.
    """

    instances: Instances
    ranking: Tensor | None
    window: Tensor
    outside: Tensor
    central: Tensor

    @classmethod
    def of(cls, found: Sequence[Found], windows: Sequence[Window], size: tuple[int, int]) -> _Candidates:
        """Collect the detections; those with a centre outside the core only if their pairs are needed."""
        window = torch.tensor([part.window for part in found], dtype=torch.int64)
        window = window.repeat_interleave(torch.tensor([len(part.instances) for part in found], dtype=torch.int64))
        every = [part.instances for part in found if len(part.instances)]
        runs = [part.runs for part in every if part.runs is not None]
        instances = Instances(
            size,
            boxes=torch.cat([torch.zeros(0, 4), *(part.boxes.float() for part in every)]),
            scores=torch.cat([torch.zeros(0), *(part.scores.float() for part in every)]),
            labels=torch.cat([window.new_zeros(0), *(part.labels for part in every)]),
            runs=join_runs(runs, size),
        )
        rankings = [part.ranking for part in found if part.ranking is not None]
        ranking = torch.cat(rankings) if rankings else None
        begin, end = instances.boxes[:, :2], instances.boxes[:, 2:]
        core_begin, core_end = _corners([w.core for w in windows])[:, window]
        centre, side = (begin + end) / 2, end - begin
        outside = torch.maximum(core_begin - centre, centre - core_end)
        central = (outside <= 1 + SLACK * side).all(1)
        return cls(instances, ranking, window, outside.amax(1).clamp(min=0), central)

    def shows_whole(self, group: Tensor, windows: Sequence[Window]) -> Tensor:
        """Return whether the window of each detection contains the boxes of all central ones of its group."""
        boxes, central = self.instances.boxes, self.central
        index = group[central, None].expand(-1, 2)
        begin = boxes[:, :2].clone().scatter_reduce_(0, index, boxes[central, :2], "amin", include_self=False)
        end = boxes[:, 2:].clone().scatter_reduce_(0, index, boxes[central, 2:], "amax", include_self=False)
        first, last = _corners([w.place for w in windows])[:, self.window]
        return ((begin[group] >= first) & (end[group] <= last)).all(1)

    def best_of(self, group: Tensor, whole: Tensor) -> Tensor:
        """Return the central detection that represents each group: whole, in the core, of high score."""
        keys = [-self.instances.scores, self.outside, ~whole, ~self.central, group]
        order = torch.from_numpy(np.lexsort([key.numpy() for key in keys]))
        first = torch.ones(len(order), dtype=torch.bool)
        first[1:] = group[order[1:]] != group[order[:-1]]
        return order[first & self.central[order]]


def _corners(rectangles: Sequence[tuple[int, int, int, int]]) -> Tensor:
    """Convert (top, left, bottom, right) of W rectangles to (left, top) and (right, bottom): Tensor[2, W, 2]."""
    return torch.tensor(rectangles, dtype=torch.float32)[:, [1, 0, 3, 2]].unflatten(1, (2, 2)).transpose(0, 1)


def _same_objects(candidates: _Candidates, windows: Sequence[Window]) -> Tensor:
    """Find detections of two windows that show the same object: Tensor[P, 2] int64.

    They have the same class and nearly the same mask where both windows see it; of several, those
    most alike.
    """
    runs, labels, window = candidates.instances.runs, candidates.instances.labels, candidates.window
    assert runs is not None
    pairs, shared = shared_areas(runs)
    one, other = pairs.unbind(1)
    like = (window[one] != window[other]) & (labels[one] == labels[other])
    pairs, shared = pairs[like], shared[like]
    one, other = pairs.unbind(1)
    borders = torch.tensor([w.place for w in windows])
    both = _areas_within(runs, one, borders[window[other]]) + _areas_within(runs, other, borders[window[one]])
    iou = shared / (both - shared)
    alike = iou > SAME
    pairs, iou = pairs[alike], iou[alike]
    differ = candidates.instances.scores[pairs].diff(dim=1)[:, 0].abs()
    mutual = torch.ones(len(pairs), dtype=torch.bool)
    for own, others in (pairs.unbind(1), pairs.flip(1).unbind(1)):
        order = torch.from_numpy(np.lexsort([differ, -iou, window[others], own]))
        own, others = own[order], window[others[order]]
        mutual[order[1:]] &= (own[1:] != own[:-1]) | (others[1:] != others[:-1])
    return pairs[mutual]


def _areas_within(runs: MaskRuns, index: Tensor, rectangles: Tensor) -> Tensor:
    """Count the pixels of masks inside rectangles.

    Args:
        runs: masks whose runs lie within rows.
        index: Tensor[P] int64, a mask for each rectangle.
        rectangles: Tensor[P, 4] int64, (top, left, bottom, right).

    Returns:
        Tensor[P] int64.
    """
    chosen = runs[index]
    top, left, bottom, right = rectangles[chosen.mask].unbind(1)
    row, begin = chosen.start.div(runs.size[1], rounding_mode="floor"), chosen.start % runs.size[1]
    end = begin + chosen.end - chosen.start
    length = (torch.minimum(end, right) - torch.maximum(begin, left)).clamp(min=0)
    return torch.zeros_like(index).index_add_(0, chosen.mask, length * ((row >= top) & (row < bottom)))


def _join_pairs(found: Sequence[Found], place: Tensor) -> PairScores:
    """Average O over the windows that see a pair; `place` is the instance that each detection shows, or -1."""
    pairs, values, first = [place.new_zeros(0, 2)], [torch.zeros(0, 2)], 0
    for part in found:
        if part.occlusion is not None:
            pairs.append(part.occlusion.pairs + first)
            values.append(part.occlusion.values)
        first += len(part.instances)
    return PairScores(torch.cat(pairs), torch.cat(values)).renumbered(place)


def _join_parts(
    candidates: _Candidates,
    best: Tensor,
    whole: Tensor,
    place: Tensor,
    windows: Sequence[Window],
    occlusion: PairScores | None,
) -> Stitched:
    """Take the best detection of each object; join those of objects that no window shows whole.

    Args:
        candidates: the n detections of all windows.
        best: Tensor[m] int64, the best detection of each object.
        whole: Tensor[m] bool, whether it shows the whole object.
        place: Tensor[n] int64, object that each detection is part of, 0..m-1, or -1.
        windows: windows of the detections.
        occlusion: O of pairs of objects.
    """
    instances, ranking = candidates.instances, candidates.ranking
    chosen = instances[best]
    boxes, scores, every, runs = chosen.boxes.clone(), chosen.scores.clone(), instances.runs, chosen.runs
    ranks = None if ranking is None else ranking[best].clone()
    assert every is not None
    assert runs is not None
    order = torch.argsort(place, stable=True)
    edges = torch.searchsorted(place[order], torch.arange(len(best) + 1)).tolist()
    split = torch.nonzero(~whole)[:, 0]
    joined = []
    for n in split.tolist():
        members = order[edges[n] : edges[n + 1]]
        masks = every[members]
        joined.append(_join_masks(masks, [windows[w].core for w in candidates.window[members].tolist()]))
        boxes[n] = torch.cat([instances.boxes[members, :2].amin(0), instances.boxes[members, 2:].amax(0)])
        weights = masks.areas().float() / masks.areas().sum()
        scores[n] = (weights * instances.scores[members]).sum()
        if ranks is not None and ranking is not None:
            ranks[n] = (weights * ranking[members]).sum()
    runs = join_runs([runs[whole], *joined], runs.size)
    runs = runs[torch.argsort(torch.cat([torch.nonzero(whole)[:, 0], split]))]
    return Stitched(replace(chosen, boxes=boxes, scores=scores, runs=runs), occlusion, ranks)


def _join_masks(masks: MaskRuns, cores: Sequence[tuple[int, int, int, int]]) -> MaskRuns:
    """Join the masks of one object: in the core of a window its own counts, elsewhere any.

    Args:
        masks: m masks.
        cores: (top, left, bottom, right) of the core of the window of each.

    Returns:
        One mask.
    """
    width, count = masks.size[1], masks.count
    rows = torch.cat([torch.arange(top, bottom) for top, _, bottom, _ in cores]) * width
    heights = torch.tensor([bottom - top for top, _, bottom, _ in cores])
    of = torch.arange(count).repeat_interleave(heights)
    left, right = torch.tensor([[left, right] for _, left, _, right in cores]).unbind(1)
    areas = MaskRuns(masks.size, count, of, rows + left[of], rows + right[of])
    cells = cells_of(join_runs([masks, areas], masks.size))
    shown, inside = cells.covers().split(count, 1)
    taken = ((shown & inside).any(1) | (shown.any(1) & ~inside.any(1)))[cells.cell]
    end = torch.cat([cells.starts[1:], cells.starts.new_tensor([masks.size[0] * width])])
    start, end = cells.starts[taken], end[taken]
    return MaskRuns(masks.size, 1, torch.zeros_like(start), start, end)
