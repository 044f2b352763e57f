"""Fusion pixel by pixel, as the sources say it: plain loops over sets, one decision at a time.

From the papers' prose (Kirillov et al. 2019; OCFusion's and REFINE's merge; SHR's containment; equation 7), with
nothing of refine.fusion.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np

VOID = -1


def order_by_score(masks, scores, labels) -> list[int]:
    """Return non-empty instances by decreasing score; ties by decreasing area, then increasing class."""
    areas = [int(m.sum()) for m in masks]
    return sorted((n for n in range(len(masks)) if areas[n]), key=lambda n: (-scores[n], -areas[n], labels[n]))


def overlap_pairs(masks, share: float) -> set[tuple[int, int]]:
    pairs = set()
    for i in range(len(masks)):
        for j in range(len(masks)):
            common = int((masks[i] & masks[j]).sum())
            if i != j and common and (common >= share * masks[i].sum() or common >= share * masks[j].sum()):
                pairs.add((i, j))
    return pairs


def is_in_front(method: str, i: int, j: int, order, scores, boxes, occlusion, sigma) -> bool:
    """Return whether a rule puts i in front of j."""
    if method == "shr":
        first, second = sorted((i, j), key=order.index)
        front = first
        if not _lies_in(boxes[first], boxes[second]) and _lies_in(boxes[second], boxes[first]):
            front = second
        return front == i
    if method in ("ocfusion", "strong"):
        return occlusion[i][j] > occlusion[j][i]
    claim = {(a, b): scores[a] * math.exp(-((occlusion[a][b] - 1) ** 2) / sigma) for a, b in ((i, j), (j, i))}
    return claim[i, j] > claim[j, i]


def _lies_in(box, other) -> bool:
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    return max(width, 0) * max(height, 0) > 0.5 * (box[2] - box[0]) * (box[3] - box[1])


def merge_instances(masks, order, front, pairwise: bool, config) -> dict[int, set[int]]:
    """Return the pixels of each instance that is kept; `front(i, j)` says whether i may take pixels of j."""
    pixels = [set(np.flatnonzero(m).tolist()) for m in masks]
    remaining = list(order)
    while True:
        kept: dict[int, set[int]] = {}
        for i in remaining:
            mine = pixels[i] - set().union(*kept.values())
            stolen = {j: kept[j] & pixels[i] for j in kept if front(i, j)}
            total = mine.union(*stolen.values())
            covered = len(pixels[i]) - len(total)
            limit = config.overlap_threshold * len(pixels[i])
            if not total or covered > limit or (pairwise and covered == limit > 0):
                continue
            for j, some in stolen.items():
                kept[j] -= some
            kept[i] = total
        robbed = {
            i: len(some) / len(pixels[i])
            for i, some in kept.items()
            if some and 0 < len(pixels[i]) - len(some) >= config.overlap_threshold * len(pixels[i])
        }
        if not (pairwise and config.recheck and robbed):
            return kept
        worst = min(robbed.values())
        remaining.remove(next(i for i in order if robbed.get(i) == worst))


def erase(
    labels: np.ndarray, confidence: np.ndarray, radius: int, threshold: float, first_class: int
) -> np.ndarray:
    """Apply Unknown Erasing with explicit dilations and a flood fill."""
    result, (height, width) = labels.copy(), labels.shape
    for label in np.unique(labels[labels >= first_class]):
        mask = labels == label
        dilated = np.zeros_like(mask)
        for y, x in zip(*np.nonzero(mask), strict=True):
            dilated[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1] = True
        seen = np.zeros_like(mask)
        for start in zip(*np.nonzero(dilated), strict=True):
            if seen[start]:
                continue
            region, queue = [], deque([start])
            seen[start] = True
            while queue:
                y, x = queue.popleft()
                region.append((y, x))
                for ny, nx in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                    if 0 <= ny < height and 0 <= nx < width and dilated[ny, nx] and not seen[ny, nx]:
                        seen[ny, nx] = True
                        queue.append((ny, nx))
            core = [p for p in region if mask[p]]
            if sum(float(confidence[p]) for p in core) < threshold * len(core):
                for p in core:
                    result[p] = VOID
    return result


def fuse_slowly(
    masks, scores, labels, boxes, sem_seg, num_things, method, config, occlusion=None, ranking=None, confidence=None
) -> np.ndarray:
    """Return the map of visible segments: instance n as n, stuff class c as 1000 + c, none as -1.

    Args:
        masks: bool[N, H, W]; scores, labels, boxes, ranking: sequences of N; occlusion: [N][N].
    """
    kept = [n for n in range(len(masks)) if scores[n] >= config.score_threshold]
    order = [n for n in order_by_score(masks, scores, labels) if n in kept]
    pairs = overlap_pairs(masks, config.pair_overlap)

    def front(i: int, j: int) -> bool:
        decided = (i, j) in pairs
        return decided and is_in_front(method, i, j, order, scores, boxes, occlusion, config.sigma)

    pairwise = method not in ("heuristic", "srm")
    if method == "srm":
        order = sorted(order, key=lambda n: -ranking[n])
    if pairwise and config.resolve == "wins":
        wins = {i: sum(front(i, j) for j in order if j != i) for i in order}
        order, pairwise = sorted(order, key=lambda n: -wins[n]), False
    owners = merge_instances(masks, order, front if pairwise else lambda i, j: False, pairwise, config)
    shown = np.full(sem_seg.shape, -1)
    for n, some in owners.items():
        shown.flat[list(some)] = n
    if config.unknown_erasing:
        radius = config.radius_at(sem_seg.shape)
        sem_seg = erase(sem_seg, confidence, radius, config.ue_threshold, num_things)
    for c in np.unique(sem_seg[sem_seg >= num_things]):
        region = (sem_seg == c) & (shown == -1)
        if region.sum() >= config.stuff_area:
            shown[region] = 1000 + c
    return shown
