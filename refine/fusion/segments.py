"""Last step of all fusion rules: fill stuff around the instances and describe the segments."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from refine.fusion.config import FusionConfig
from refine.fusion.merge import FREE
from refine.fusion.unknown import KEPT, unknown_runs
from refine.ops.runs import run_lengths, run_starts, run_sums, spread
from refine.structures import VOID, Categories, Instances, PanopticResult, Segment


@dataclass
class Partition:
    """Partition of an image, or of a band of its rows, into R runs, each of one semantic class and one instance.

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
    starts: Tensor,
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
        starts, owner: spans of pixels and their owners; see `partition`.
        sem_seg: Tensor[H, W] int64, contiguous class or `VOID`.
        sem_confidence: Tensor[H, W] float, 0-1, or None; required by Unknown Erasing.
        categories: categories of the labels.
        config: thresholds; `stuff_area` and those of Unknown Erasing are used.
    """
    size = (int(sem_seg.shape[0]), int(sem_seg.shape[1]))
    radius = config.radius_at(size) if config.unknown_erasing else None
    runs = partition(starts, owner.to(sem_seg.device), sem_seg, sem_confidence, radius)
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
    totals = Totals(len(instances), categories, sem_seg.device)
    values = totals.add(runs)
    ids = totals.ids(config.stuff_area)
    segments = totals.describe(ids, instances, indices)
    return PanopticResult(spread(ids[values], runs.lengths, size), segments, categories)


def partition(
    starts: Tensor, owner: Tensor, sem_seg: Tensor, sem_confidence: Tensor | None, radius: int | None
) -> Partition:
    """Split the image where the semantic class or the owner changes, and at the bands of Unknown Erasing.

    Args:
        starts: Tensor[S] int64, flat index of the first pixel of each span, increasing from 0.
        owner: Tensor[S] int64, instance that owns each span, or `FREE`.
        sem_seg, sem_confidence: as in `assemble`.
        radius: radius of Unknown Erasing in pixels, or None if it is not used.
    """
    runs = run_starts(sem_seg, starts, None if radius is None else 2 * radius + 1)
    lengths = run_lengths(runs, sem_seg.numel())
    first = torch.searchsorted(runs, starts)  # a run begins at every span
    per_span = run_lengths(first, len(runs))
    return Partition(
        size=(int(sem_seg.shape[0]), int(sem_seg.shape[1])),
        starts=runs,
        lengths=lengths,
        labels=sem_seg.reshape(-1)[runs].long(),
        confidence=None if sem_confidence is None else run_sums(sem_confidence, runs),
        owner=owner.repeat_interleave(per_span, output_size=len(runs)),
    )


class Totals:
    """Areas, boxes and confidences of what an image shows, summed over one or more partitions.

    What a run shows is a value: i for instance i, N + c for stuff class c, N + C for void.

    Args:
        count: number of instances, N.
        categories: the C categories of the labels.
        device: device of the partitions.
    """

    def __init__(self, count: int, categories: Categories, device: torch.device) -> None:
        self.count, self.categories = count, categories
        self.void = count + len(categories)
        self.areas = torch.zeros(self.void + 1, dtype=torch.int64, device=device)
        self.confidence = torch.zeros(self.void + 1, dtype=torch.float64, device=device)
        self.scored = False
        # Rows: left, top, -right, -bottom, so that one minimum gives all four.
        self.bounds = torch.full((4, self.void + 1), torch.iinfo(torch.int64).max, device=device)

    def values(self, runs: Partition) -> Tensor:
        """Return the value of each run, Tensor[R] int64."""
        stuff = torch.where(runs.labels >= self.categories.num_things, self.count + runs.labels, self.void)
        return torch.where(runs.owner == FREE, stuff, runs.owner)

    def add(self, runs: Partition, top: int = 0) -> Tensor:
        """Add the runs of a partition whose first row is row `top` of the image; return their values, Tensor[R]."""
        values = self.values(runs)
        x, y = runs.starts % runs.size[1], runs.starts.div(runs.size[1], rounding_mode="floor") + top
        extent = torch.stack([x, y, -(x + runs.lengths), -(y + 1)])
        self.bounds.scatter_reduce_(1, values.expand(4, -1), extent, "amin")
        self.areas.index_add_(0, values, runs.lengths)
        if runs.confidence is not None:
            self.scored = True
            self.confidence.index_add_(0, values, runs.confidence)
        return values

    def ids(self, stuff_area: int) -> Tensor:
        """Return the segment id of each value, 1..S in their order, and 0 for void and for what is not shown.

        Args:
            stuff_area: number of pixels below which a stuff class becomes void.

        Returns:
            Tensor[N + C + 1] int32.
        """
        shown = self.areas > 0
        shown[self.count :] &= self.areas[self.count :] >= stuff_area
        shown[self.void] = False
        return torch.where(shown, shown.cumsum(0, dtype=torch.int32), 0)

    def describe(self, ids: Tensor, instances: Instances, indices: Tensor) -> list[Segment]:
        """Return area, box, score and category of each segment.

        Args:
            ids: result of `ids`.
            instances: N instances.
            indices: Tensor[N] int64, index of each instance in the input of fusion.
        """
        values = ids.nonzero().squeeze(1)
        means = (self.confidence[values] / self.areas[values]).tolist() if self.scored else None
        found = torch.cat([values[None], self.areas[None, values], self.bounds[:, values]]).T.tolist()
        (labels, originals), scores = torch.stack([instances.labels, indices]).tolist(), instances.scores.tolist()
        segments = []
        for n, (value, area, left, top, right, bottom) in enumerate(found):
            isthing = value < self.count
            category = self.categories[labels[value] if isthing else value - self.count]
            score = scores[value] if isthing else None if means is None else means[n]
            box = (left, top, -right - left, -bottom - top)
            instance = originals[value] if isthing else None
            segments.append(Segment(n + 1, category.id, isthing, score, area, box, instance))
        return segments
