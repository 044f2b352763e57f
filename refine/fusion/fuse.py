"""One call for every rule of fusion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import torch
from torch import Tensor

from refine.errors import RefineError
from refine.fusion.config import FusionConfig, Method
from refine.fusion.merge import merge
from refine.fusion.rules import OcclusionFn, check_shape, decide
from refine.fusion.segments import assemble
from refine.ops.cells import Cells, cells_of
from refine.ops.masks import MaskRuns, dense_runs, overlapping, paste_runs
from refine.structures import VOID, Categories, Instances, PanopticResult

RankingFn = Callable[[Instances], Tensor]
"""N instances -> Tensor[N], SRM's spatial ranking score of each."""


def fuse(
    instances: Instances,
    sem_seg: Tensor,
    *,
    categories: Categories,
    method: Method = "heuristic",
    sem_confidence: Tensor | None = None,
    occlusion: Tensor | OcclusionFn | None = None,
    ranking: Tensor | RankingFn | None = None,
    config: FusionConfig | None = None,
) -> PanopticResult:
    """Turn instances that may overlap and a semantic map into one panoptic map.

    Every rule works on the same masks with the same thresholds and the same end (Unknown Erasing, stuff,
    small regions); they differ in what lies in front:

    - "heuristic" (Kirillov et al. 2019): instances by falling score, the first takes the pixel.
    - "srm" (Liu et al. 2019): the same, but by a learned `ranking` of instances.
    - "shr" (Wang et al. 2019): pairwise; what lies inside another box is in front.
    - "ocfusion" (Lazarow et al. 2020): pairwise, O(i, j) > O(j, i), O from masks and features.
    - "strong": the same rule, O also from class labels.
    - "soe" (REFINE): pairwise, Õ(i, j) > Õ(j, i), equation 7: O weighted by the confidence.

    Pairwise rules decide the pairs that overlap by `config.pair_overlap`; all others keep score order. How
    decisions become a picture is said in `refine.fusion.merge`. The result does not depend on the order of
    the instances: equal scores are ordered by area, class and pixels.

    Args:
        instances: any number; masks from `masks`, or else from `roi_masks` pasted at .5; all on one device.
        sem_seg: Tensor[H, W] integer, contiguous class or `VOID`, at `instances.image_size`.
        categories: of all labels.
        method: the rule.
        sem_confidence: Tensor[H, W] float, 0-1, of the class in `sem_seg`: needed for Unknown Erasing, and
            gives stuff segments their score.
        occlusion: of the learned pairwise rules: O of the given instances, Tensor[N, N] in 0-1, of which
            only overlapping pairs are read, or a function that computes it (see `OcclusionFn`).
        ranking: of "srm": Tensor[N], of the given instances, or a function that computes it.
        config: thresholds; the defaults if None.

    Returns:
        The map at `instances.image_size`, on the device of `sem_seg`. Ids count instances by falling
        score, then stuff by class.

    Raises:
        RefineError: an unknown method, what the method or the configuration needs is missing, labels that
            `categories` does not have, masks that are not bool, or scores or an occlusion outside 0-1.
        ValueError: shapes that do not agree.
    """
    config = config or FusionConfig()
    _check(instances, sem_seg, sem_confidence, categories, config)
    if method not in get_args(Method):
        raise RefineError(f"method {method!r}: unknown; give one of {', '.join(get_args(Method))}")
    count = len(instances)
    instances, runs, chosen = prepare(instances, config.score_threshold)
    if isinstance(occlusion, Tensor):
        occlusion = check_shape("occlusion", occlusion, (count, count))[chosen][:, chosen]
    if isinstance(ranking, Tensor):
        ranking = check_shape("ranking", ranking, (count,))[chosen]
    cells = cells_of(runs)
    order, front = arrange(method, instances, cells, occlusion, ranking, config)
    owner = merge(_to_cpu(cells), runs.areas().cpu(), order, front, config)
    return assemble(instances, chosen, cells, owner, sem_seg, sem_confidence, categories, config)


def prepare(instances: Instances, score_threshold: float) -> tuple[Instances, MaskRuns, Tensor]:
    """Drop low scores and empty masks, and sort: what every rule begins with.

    Returns:
        The instances by falling score, the runs of their masks, and Tensor[n] int64: where in the input
        each of them was.

    Raises:
        RefineError: instances without any mask.
    """
    chosen = torch.nonzero(instances.scores >= score_threshold).squeeze(1)
    instances = instances[chosen]
    if instances.masks is not None:
        runs = dense_runs(instances.masks)
    elif instances.roi_masks is not None:
        runs = paste_runs(instances.roi_masks, instances.boxes, instances.image_size)
    elif len(instances):
        raise RefineError("instances: neither `masks` nor `roi_masks` is given; fusion needs one of them")
    else:
        runs = dense_runs(torch.zeros(0, *instances.image_size, dtype=torch.bool, device=chosen.device))
    order = torch.tensor(_content_order(instances, runs), dtype=torch.int64, device=chosen.device)
    return instances[order], runs[order], chosen[order]


def arrange(
    method: Method,
    instances: Instances,
    cells: Cells,
    occlusion: Tensor | OcclusionFn | None,
    ranking: Tensor | RankingFn | None,
    config: FusionConfig,
) -> tuple[list[int], Tensor | None]:
    """What a rule says before anything is merged (see `refine.fusion.merge`).

    Args:
        method, occlusion, ranking, config: as in `fuse`.
        instances: N, as `prepare` gives them.
        cells: of their masks.

    Returns:
        The instances, first come first served; and the pairwise decisions, Tensor[N, N] bool on the CPU,
        [i, j] = "i lies in front of j", or None where the order alone counts.

    Raises:
        RefineError: what the rule needs is missing, or an occlusion outside 0-1.
    """
    order = list(range(len(instances)))
    if method == "heuristic":
        return order, None
    if method == "srm":
        return _by_ranking(instances, ranking), None
    pairs = overlapping(cells.intersections(), config.pair_overlap)
    return order, decide(method, instances, pairs, occlusion, config.sigma).cpu()


def _content_order(instances: Instances, runs: MaskRuns) -> list[int]:
    """Masks with pixels by falling score; ties by area, class and then pixels, never by place."""
    areas = runs.areas().tolist()
    keys = list(zip((-instances.scores).tolist(), [-a for a in areas], instances.labels.tolist(), strict=True))
    order = sorted((n for n in range(len(keys)) if areas[n]), key=lambda n: keys[n])
    if len(set(keys)) == len(keys):
        return order
    pixels = [torch.stack([runs.start, runs.end])[:, runs.mask == n].T.tolist() for n in range(len(keys))]
    return sorted(order, key=lambda n: (keys[n], pixels[n]))


def _by_ranking(instances: Instances, ranking: Tensor | RankingFn | None) -> list[int]:
    """SRM's order: by falling ranking score, equals by falling detection score."""
    if ranking is None:
        raise RefineError(
            "method 'srm': `ranking` is missing; give one score per instance, Tensor[N], or a "
            "SpatialRanking's `predict`"
        )
    if not isinstance(ranking, Tensor):
        ranking = check_shape("ranking", ranking(instances), (len(instances),))
    scores = ranking.tolist()
    return sorted(range(len(instances)), key=lambda n: -scores[n])


def _to_cpu(cells: Cells) -> Cells:
    return replace(cells, words=cells.words.cpu(), areas=cells.areas.cpu())


def _check(
    instances: Instances,
    sem_seg: Tensor,
    sem_confidence: Tensor | None,
    categories: Categories,
    config: FusionConfig,
) -> None:
    """Raise if the arguments of `fuse` do not fit together."""
    size = tuple(instances.image_size)
    check_shape("sem_seg", sem_seg, size)
    if instances.masks is not None and instances.masks.dtype != torch.bool:
        raise RefineError(f"instances.masks: are {instances.masks.dtype}, expected torch.bool; give `masks > 0.5`")
    if not bool(((instances.scores >= 0) & (instances.scores <= 1)).all()):
        raise RefineError("instances.scores: not all are within 0-1; give probabilities")
    if sem_confidence is not None:
        check_shape("sem_confidence", sem_confidence, size)
    if config.unknown_erasing and sem_confidence is None:
        raise RefineError(
            "fusion.unknown_erasing needs the confidence of the semantic map; give `sem_confidence`, or "
            "set fusion.unknown_erasing to false"
        )
    for name, values, low, high in (
        ("sem_seg", sem_seg, VOID, len(categories)),
        ("instances.labels", instances.labels, 0, categories.num_things),
    ):
        if values.numel():
            if values.is_floating_point() or values.is_complex():
                raise RefineError(f"{name}: is {values.dtype}, expected integers; give contiguous classes")
            smallest, largest = (int(v) for v in values.aminmax())
            if smallest < low or largest >= high:
                raise RefineError(
                    f"{name}: has labels {smallest}..{largest}, but {categories!r} allows {low}..{high - 1}; "
                    "map them to contiguous indices first"
                )
