"""Last step of all fusion rules: fill stuff around the instances and describe the segments."""

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
    """Partition of an image into R runs, each of one semantic class and one instance.

    Attributes:
        size: (height, width) in pixels.
        starts, lengths: Tensor[R] int64, flat index of the first pixel and number of pixels of each run.
        labels: Tensor[R] int64, semantic class or `VOID`.
        confidence: Tensor[R] float64, semantic confidence summed over each run, or None.
        owner: Tensor[R] int64, instance that owns the run, or `FREE`.
    """

    size: tuple[int, int]
    starts: Tensor
    lengths: Tensor
    labels: Tensor
    confidence: Tensor | None
    owner: Tensor


def assemble(
    instances: Instances,
    indices: Tensor,
    cells: Cells,
    owner: Tensor,
    sem_seg: Tensor,
    sem_confidence: Tensor | None,
    categories: Categories,
    config: FusionConfig,
) -> PanopticResult:
    """Erase unknown regions, fill stuff around the instances, and number and describe the segments.

    Segment ids number the instances by decreasing score, then the stuff classes by index.

    Args:
        instances: N instances by decreasing score.
        indices: Tensor[N] int64, index of each instance in the input of `fuse`.
        cells: partition of the image by their masks.
        owner: Tensor[A] int64, instance that owns each cell, or `FREE`.
        sem_seg: Tensor[H, W] int64, contiguous class or `VOID`.
        sem_confidence: Tensor[H, W] float, 0-1, or None; required by Unknown Erasing.
        categories: categories of the labels.
        config: thresholds; `stuff_area` and those of Unknown Erasing are used.
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

    # Value of each run: i for instance i, N + c for stuff class c, FREE for void.
    count = len(instances)
    stuff = (runs.owner == FREE) & (runs.labels >= categories.num_things)
    areas = torch.zeros(len(categories), dtype=torch.int64, device=sem_seg.device)
    areas.index_add_(0, runs.labels[stuff], runs.lengths[stuff])
    large = areas >= max(config.stuff_area, 1)
    stuff &= large[runs.labels.clamp(min=0)]
    shown = torch.where(stuff, count + runs.labels, runs.owner)

    # Segment ids 1..S in the order of `shown`; 0 for void.
    present = torch.zeros(count + len(categories) + 1, dtype=torch.int32, device=sem_seg.device)
    present[shown] = 1  # FREE = -1 indexes the last entry
    present[FREE] = 0
    ids = torch.where(present > 0, present.cumsum(0, dtype=torch.int32), 0)[shown]
    values = present.nonzero().squeeze(1).tolist()
    segments = _describe(runs, ids, values, instances, indices, categories)
    return PanopticResult(spread(ids, runs.lengths, size), segments, categories)


def _partition(
    cells: Cells, owner: Tensor, sem_seg: Tensor, sem_confidence: Tensor | None, radius: int | None
) -> _Partition:
    """Split the image where the semantic class or the cell changes, and at the bands of Unknown Erasing."""
    starts = run_starts(sem_seg, cells.starts, None if radius is None else 2 * radius + 1)
    lengths = run_lengths(starts, sem_seg.numel())
    first = torch.searchsorted(starts, cells.starts)  # a run begins at every span
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
    runs: _Partition, ids: Tensor, values: list[int], instances: Instances, indices: Tensor, categories: Categories
) -> list[Segment]:
    """Compute area, box, score and category of each segment.

    Args:
        runs: partition of the image.
        ids: Tensor[R] int32, segment id of each run, 1..S, or 0 for void.
        values: S integers, what each segment shows: i for instance i, N + c for stuff class c.
        instances: N instances.
        indices: Tensor[N] int64, index of each instance in the input of `fuse`.
        categories: categories of the labels.
    """
    x, y = runs.starts % runs.size[1], runs.starts.div(runs.size[1], rounding_mode="floor")
    index = ids.long()
    # Rows: left, top, -right, -bottom, so that one minimum gives all four.
    extent = torch.stack([x, y, -(x + runs.lengths), -(y + 1)])
    bounds = extent.new_zeros(4, len(values) + 1)
    bounds.scatter_reduce_(1, index.expand(4, -1), extent, "amin", include_self=False)
    areas = torch.zeros(len(values) + 1, dtype=torch.int64, device=ids.device)
    areas.index_add_(0, index, runs.lengths)
    means: list[float] | None = None
    if runs.confidence is not None:
        sums = torch.zeros(len(values) + 1, dtype=torch.float64, device=ids.device)
        means = (sums.index_add_(0, index, runs.confidence) / areas.clamp(min=1)).tolist()
    labels, scores, originals = instances.labels.tolist(), instances.scores.tolist(), indices.tolist()
    segments = []
    for n, (value, area, (left, top, right, bottom)) in enumerate(
        zip(values, areas[1:].tolist(), bounds[:, 1:].T.tolist(), strict=True), 1
    ):
        isthing = value < len(labels)
        category = categories[labels[value] if isthing else value - len(labels)]
        score = scores[value] if isthing else None if means is None else means[n]
        box = (left, top, -right - left, -bottom - top)
        instance = originals[value] if isthing else None
        segments.append(Segment(n, category.id, isthing, score, area, box, instance))
    return segments
