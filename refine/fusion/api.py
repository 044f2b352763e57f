"""Entry point for all fusion rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from refine.errors import RefineError
from refine.fusion.checks import check, check_unit_range, convert
from refine.fusion.config import FusionConfig, Method, check_known
from refine.fusion.merge import merge
from refine.fusion.rules import OcclusionFn, check_shape, decide, evaluate_occlusion
from refine.fusion.segments import assemble
from refine.fusion.unknown import erase_dilated
from refine.ops.cells import Cells, cells_of
from refine.ops.masks import MaskRuns, overlapping
from refine.ops.penalty import soft_occlusion
from refine.structures import Categories, Instances, PanopticResult
from refine.structures.arrays import ArrayLike, as_tensor

RankingFn = Callable[[Instances], Tensor]
"""N instances -> Tensor[N] float, spatial ranking score of each (SRM)."""


def fuse(
    instances: Instances,
    sem_seg: ArrayLike | None,
    *,
    categories: Categories,
    method: Method = "heuristic",
    sem_confidence: ArrayLike | None = None,
    sem_probabilities: ArrayLike | Callable[[], Tensor] | None = None,
    occlusion: ArrayLike | OcclusionFn | None = None,
    ranking: ArrayLike | RankingFn | None = None,
    config: FusionConfig | Mapping[str, Any] | None = None,
) -> PanopticResult:
    """Fuse possibly overlapping instances and a semantic map into one panoptic map.

    The order of the instances does not matter: equal scores are sorted by area, class, pixels and box; exact
    duplicates are fused as one, with the mean of their `occlusion` and `ranking`.

        >>> categories = refine.Categories([refine.Category(1, "cup", True), refine.Category(2, "table", False)])
        >>> masks = np.array([[[1, 1, 1, 0, 0, 0]], [[0, 0, 1, 1, 1, 0]]])  # they share the third pixel
        >>> inputs = refine.adapters.from_masks(masks, labels=[0, 0], scores=[0.9, 0.8]), np.ones((1, 6), int)
        >>> fuse(*inputs, categories=categories, config={"stuff_area": 1}).segment_ids.tolist()
        [[1, 1, 1, 2, 2, 3]]
        >>> occlusion = [[0, 0], [1, 0]]  # the second lies in front of the first
        >>> result = fuse(*inputs, categories=categories, method="soe", occlusion=occlusion)
        >>> result.segment_ids.tolist()  # stuff of fewer than 4096 pixels becomes void
        [[1, 1, 2, 2, 2, 0]]

    Args:
        instances: N instances on one device; masks come from `runs` or `masks`, else `roi_masks` pasted at 0.5.
        sem_seg: Tensor or array [H, W] of integers, contiguous class or `VOID`; None fuses only things.
        categories: categories of all labels.
        method: fusion rule; `refine.fusion` lists them.
        sem_confidence: Tensor or array [H, W] of floats, 0-1, confidence of `sem_seg`; required by Unknown Erasing.
        sem_probabilities: Tensor or array [C, H, W] of floats, 0-1, probability of each category, or a function
            that computes it; required by `ue_region` "dilated".
        occlusion: O of the given instances for the learned pairwise rules: Tensor or array [N, N] in 0-1, or a
            function that computes it (see `OcclusionFn`).
        ranking: score of each instance for "srm": Tensor or array [N], or a function that computes it.
        config: thresholds: all of them, or a mapping of those that differ from the defaults.

    Returns:
        Panoptic map on the device of `sem_seg`. Ids number instances by decreasing score, then stuff by class.

    Raises:
        RefineError: the method is unknown, a required input is missing, or values are out of range.
        ValueError, TypeError: shapes do not agree, or an argument has the wrong type.
    """
    check_known(method)
    config = config if isinstance(config, FusionConfig) else FusionConfig().changed(config or {})
    instances, sem_seg, sem_confidence = convert(instances, sem_seg, sem_confidence)
    check(instances, sem_seg, sem_confidence, categories, config)
    count = len(instances)
    instances, runs, indices, duplicates = prepare(instances, config.score_threshold)
    pairwise: Tensor | OcclusionFn | None = select("occlusion", occlusion, (count, count), indices, duplicates)
    ranks: Tensor | RankingFn | None = select("ranking", ranking, (count,), indices, duplicates)
    if config.unknown_erasing and config.ue_region == "dilated" and sem_seg is not None:
        sem_seg, config = _erase_dilated(sem_seg, sem_probabilities, categories, config)
    cells, owner = assign(method, instances, runs, pairwise, ranks, config)
    owner = owner.to(cells.cell.device)[cells.cell]
    return assemble(instances, indices, cells.starts, owner, sem_seg, sem_confidence, categories, config)


def _erase_dilated(
    sem_seg: Tensor,
    probabilities: ArrayLike | Callable[[], Tensor] | None,
    categories: Categories,
    config: FusionConfig,
) -> tuple[Tensor, FusionConfig]:
    """Return the semantic map after Unknown Erasing, and the configuration without it."""
    if probabilities is None:
        raise RefineError(
            "sem_probabilities: missing, but fusion.ue_region (--ue-region) 'dilated' needs them; give them or use "
            "'core'"
        )
    given = probabilities() if callable(probabilities) else as_tensor("sem_probabilities", probabilities)
    given = check_shape("sem_probabilities", given.detach(), (len(categories), *sem_seg.shape))
    check_unit_range("sem_probabilities", given, "apply the softmax to logits once")
    radius = config.radius_at((sem_seg.shape[0], sem_seg.shape[1]))
    erased = erase_dilated(sem_seg, given, radius, config.ue_threshold, categories.num_things)
    return erased, replace(config, unknown_erasing=False)


def _soft_scores(
    instances: Instances, cells: Cells, occlusion: Tensor | OcclusionFn, config: FusionConfig
) -> tuple[Tensor, set[int]]:
    """Return O, and the instances with an Õ(i, j) below the score threshold."""
    pairs = overlapping(cells.intersections(), config.pair_overlap)
    occlusion = evaluate_occlusion(occlusion, instances, pairs)
    claims = soft_occlusion(instances.scores, occlusion, config.sigma).masked_fill(~pairs, torch.inf)
    return occlusion, set(torch.nonzero(claims.amin(1) < config.score_threshold)[:, 0].tolist())


def prepare(instances: Instances, score_threshold: float) -> tuple[Instances, MaskRuns, Tensor, list[list[int]]]:
    """Drop low scores, empty masks and duplicates, and sort by decreasing score.

    Returns:
        The n remaining instances, the runs of their masks, their indices in the input (Tensor[n] int64), and
        for each the input indices of all its duplicates, its own first.

    Raises:
        RefineError: the instances have no masks.
    """
    confident = torch.nonzero(instances.scores >= score_threshold).squeeze(1)
    instances = instances[confident]
    runs = instances.mask_runs()
    groups = _content_order(instances, runs)
    order = torch.tensor([group[0] for group in groups], dtype=torch.int64, device=confident.device)
    indices = confident.tolist()
    duplicates = [[indices[n] for n in group] for group in groups]
    return instances[order], runs[order], confident[order], duplicates


def assign(
    method: Method,
    instances: Instances,
    runs: MaskRuns,
    occlusion: Tensor | OcclusionFn | None,
    ranking: Tensor | RankingFn | None,
    config: FusionConfig,
) -> tuple[Cells, Tensor]:
    """Assign each pixel that masks cover to at most one of them.

    Masks do not affect the result of others that they do not overlap, directly or through other masks.

    Args:
        method, occlusion, ranking, config: as in `fuse`.
        instances, runs: N instances and the runs of their masks, as returned by `prepare`.

    Returns:
        Partition of the image by the masks into A cells, and the instance that owns each cell, Tensor[A] int64 on
        the CPU, or `merge.FREE`.

    Raises:
        RefineError: as in `arrange`.
    """
    cells = cells_of(runs)
    dropped: set[int] = set()
    if method == "soe" and config.soft_scores and occlusion is not None and len(instances):
        occlusion, dropped = _soft_scores(instances, cells, occlusion, config)
    order, front = arrange(method, instances, cells, occlusion, ranking, config)
    order = [n for n in order if n not in dropped]
    return cells, merge(_to_cpu(cells), runs.areas().cpu(), order, front, config)


def arrange(
    method: Method,
    instances: Instances,
    cells: Cells,
    occlusion: Tensor | OcclusionFn | None,
    ranking: Tensor | RankingFn | None,
    config: FusionConfig,
) -> tuple[list[int], Tensor | None]:
    """Compute the order and the pairwise decisions of a rule, the input of `refine.fusion.merge`.

    Args:
        method, occlusion, ranking, config: as in `fuse`.
        instances: N instances, as returned by `prepare`.
        cells: partition of the image by their masks.

    Returns:
        Order in which the instances are pasted, and the pairwise decisions, Tensor[N, N] bool on the CPU,
        [i, j] = "i lies in front of j", or None if only the order matters.

    Raises:
        RefineError: an input of the rule is missing, or an occlusion is outside 0-1.
    """
    order = list(range(len(instances)))
    if method == "heuristic":
        return order, None
    if method == "srm":
        return _by_ranking(instances, ranking), None
    pairs = overlapping(cells.intersections(), config.pair_overlap)
    return order, decide(method, instances, pairs, occlusion, config.sigma).cpu()


def _content_order(instances: Instances, runs: MaskRuns) -> list[list[int]]:
    """Sort non-empty masks by decreasing score; ties by area, class, pixels and box, never by input order.

    Returns:
        Groups of indices of instances that are equal in all of these, increasing within a group.
    """
    areas, labels = torch.stack([runs.areas(), instances.labels]).tolist()
    keys = list(zip((-instances.scores).tolist(), [-a for a in areas], labels, strict=True))
    ties = Counter(keys)
    if len(ties) == len(keys):
        return [[n] for n in sorted(range(len(keys)), key=lambda n: keys[n]) if areas[n]]
    # Pixels and boxes are compared only where everything else is equal.
    details: list[Any] = [None] * len(keys)
    runs = runs.to("cpu")
    edges, counts = torch.stack([runs.start, runs.end], 1), torch.bincount(runs.mask, minlength=len(keys)).tolist()
    for n, (edge, box) in enumerate(zip(torch.split(edges, counts), instances.boxes.tolist(), strict=True)):
        if ties[keys[n]] > 1:
            details[n] = (edge.tolist(), box)
    order = sorted((n for n in range(len(keys)) if areas[n]), key=lambda n: (keys[n], details[n]))
    return [list(group) for _, group in groupby(order, key=lambda n: (keys[n], details[n]))]


def select(
    name: str, values: Any, shape: tuple[int, ...], indices: Tensor, duplicates: Sequence[Sequence[int]]
) -> Any:
    """Select the n kept instances from an argument for all N, Tensor[N] or Tensor[N, N].

    A function or None is returned as it is.
    """
    if values is None or callable(values):
        return values
    selected = check_shape(name, as_tensor(name, values).detach(), shape)
    for dimension in range(len(shape)):
        selected = _merge_duplicates(selected.movedim(dimension, 0), indices, duplicates).movedim(0, dimension)
    return selected


def _merge_duplicates(values: Tensor, indices: Tensor, duplicates: Sequence[Sequence[int]]) -> Tensor:
    """Select the values of kept instances, Tensor[N, ...] -> Tensor[n, ...]; duplicates give their mean."""
    selected = values[indices.to(values.device)]
    for n, group in enumerate(duplicates):
        if len(group) > 1:
            selected[n] = values[list(group)].double().mean(0).to(values.dtype)
    return selected


def _by_ranking(instances: Instances, ranking: Tensor | RankingFn | None) -> list[int]:
    """Return SRM's order: decreasing ranking score, ties by decreasing detection score."""
    if ranking is None:
        raise RefineError(
            "method 'srm': `ranking` is missing; give one score per instance, Tensor[N], or a "
            "SpatialRanking's `predict`"
        )
    if not isinstance(ranking, Tensor):
        ranking = check_shape("ranking", ranking(instances), (len(instances),))
    if bool(ranking.isnan().any()):
        raise RefineError("ranking: expected numbers, got NaN; leave out these instances, or correct the scores")
    scores = ranking.tolist()
    return sorted(range(len(instances)), key=lambda n: -scores[n])


def _to_cpu(cells: Cells) -> Cells:
    return replace(cells, words=cells.words.cpu(), areas=cells.areas.cpu())
