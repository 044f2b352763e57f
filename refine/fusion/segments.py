"""The end that all rules share: instances on the canvas, stuff around them, and what each segment is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from refine.fusion.config import FusionConfig
from refine.fusion.merge import FREE
from refine.fusion.unknown import KEPT, unknown_runs
from refine.ops.cells import Cells
from refine.ops.runs import run_lengths, run_starts, run_sums, spread
from refine.structures import VOID, Categories, Instances, PanopticResult, Segment


@dataclass
class _Partition:
    """The image in runs of one semantic class and one instance each; R of them.

    Attributes:
        size: (height, width).
        starts, lengths: Tensor[R] int64.
        labels: Tensor[R] int64, semantic class or `VOID`.
        confidence: Tensor[R] float64, sum of the class's confidence over the run, or None.
        owner: Tensor[R] int64, instance, or `FREE`.
    """

    size: tuple[int, int]
    starts: Tensor
    lengths: Tensor
    labels: Tensor
    confidence: Tensor | None
    owner: Tensor


def assemble(
    instances: Instances,
    sources: Tensor,
    cells: Cells,
    owner: Tensor,
    sem_seg: Tensor,
    sem_confidence: Tensor | None,
    categories: Categories,
    config: FusionConfig,
) -> PanopticResult:
    """Erase unknown regions, fill stuff around the instances, number and describe the segments.

    Segment ids count the instances by falling score, then the stuff classes in their order.

    Args:
        instances: N, of which `owner` names some.
        sources: Tensor[N] int64, their places in the input of `fuse`.
        cells: of their masks.
        owner: Tensor[A] int64, instance that owns each cell, or `FREE`.
        sem_seg: Tensor[H, W] int64, class or `VOID`.
        sem_confidence: Tensor[H, W] float, 0-1, or None; needed to erase unknown regions.
        categories: of the labels.
        config: `stuff_area` and the thresholds of Unknown Erasing.
    """
    size = (int(sem_seg.shape[0]), int(sem_seg.shape[1]))
    radius = config.radius_at(size) if config.unknown_erasing else None
    runs = _partition(cells, owner.to(sem_seg.device), sem_seg, sem_confidence, radius)
    if radius is not None:
        assert runs.confidence is not None
        regions = unknown_runs(
            runs.labels,
            runs.confidence,
            runs.starts,
            runs.lengths,
            size,
            radius,
            config.ue_threshold,
            categories.num_things,
        )
        runs.labels = torch.where(regions != KEPT, VOID, runs.labels)

    # What a run shows: instance i as i, class c as N + c, nothing as FREE.
    count = len(instances)
    stuff = (runs.owner == FREE) & (runs.labels >= categories.num_things)
    areas = torch.zeros(len(categories), dtype=torch.int64, device=sem_seg.device)
    areas.index_add_(0, runs.labels[stuff], runs.lengths[stuff])
    large = areas >= max(config.stuff_area, 1)
    stuff &= large[runs.labels.clamp(min=0)]
    shown = torch.where(stuff, count + runs.labels, runs.owner)

    # Numbers 1..S in the order of `shown`; 0 for nothing.
    present = torch.zeros(count + len(categories) + 1, dtype=torch.int32, device=sem_seg.device)
    present[shown] = 1  # the last entry is FREE's
    present[FREE] = 0
    ids = torch.where(present > 0, present.cumsum(0, dtype=torch.int32), 0)[shown]
    names = present.nonzero().squeeze(1).tolist()
    segments = _describe(runs, ids, names, instances, sources, categories)
    return PanopticResult(spread(ids, runs.lengths, size), segments, categories)


def _partition(
    cells: Cells, owner: Tensor, sem_seg: Tensor, sem_confidence: Tensor | None, radius: int | None
) -> _Partition:
    """Cut the image where semantic class or cell changes, and where Unknown Erasing wants it."""
    starts = run_starts(sem_seg, cells.starts, None if radius is None else 2 * radius + 1)
    lengths = run_lengths(starts, sem_seg.numel())
    first = torch.searchsorted(starts, cells.starts)  # every span begins with a run
    per_span = run_lengths(first, len(starts))
    return _Partition(
        size=(int(sem_seg.shape[0]), int(sem_seg.shape[1])),
        starts=starts,
        lengths=lengths,
        labels=sem_seg.reshape(-1)[starts].long(),
        confidence=None if sem_confidence is None else run_sums(sem_confidence, starts),
        owner=owner[cells.cell].repeat_interleave(per_span, output_size=len(starts)),
    )


def _describe(
    runs: _Partition, ids: Tensor, names: list[int], instances: Instances, sources: Tensor, categories: Categories
) -> list[Segment]:
    """What each segment is.

    Args:
        runs: of the image.
        ids: Tensor[R] int32, segment of each run, 1..S, or 0.
        names: of the S segments: instance i is i, class c is N + c.
        instances: N.
        sources: their places in the input of `fuse`.
        categories: of the labels.
    """
    x, y = runs.starts % runs.size[1], runs.starts.div(runs.size[1], rounding_mode="floor")
    index = ids.long()
    # Columns: left, top, minus right, minus bottom: one minimum for all.
    extent = torch.stack([x, y, -(x + runs.lengths), -(y + 1)])
    bounds = extent.new_zeros(4, len(names) + 1)
    bounds.scatter_reduce_(1, index.expand(4, -1), extent, "amin", include_self=False)
    areas = torch.zeros(len(names) + 1, dtype=torch.int64, device=ids.device)
    areas.index_add_(0, index, runs.lengths)
    means: list[float] | None = None
    if runs.confidence is not None:
        sums = torch.zeros(len(names) + 1, dtype=torch.float64, device=ids.device)
        means = (sums.index_add_(0, index, runs.confidence) / areas.clamp(min=1)).tolist()
    labels, scores, places = instances.labels.tolist(), instances.scores.tolist(), sources.tolist()
    segments = []
    for n, (name, area, (left, top, right, bottom)) in enumerate(
        zip(names, areas[1:].tolist(), bounds[:, 1:].T.tolist(), strict=True), 1
    ):
        isthing = name < len(labels)
        category = categories[labels[name] if isthing else name - len(labels)]
        score = scores[name] if isthing else None if means is None else means[n]
        box = (left, top, -right - left, -bottom - top)
        place = places[name] if isthing else None
        segments.append(Segment(n, category.id, isthing, score, area, box, place))
    return segments
