"""One call for every rule of fusion."""

from __future__ import annotations

import torch
from torch import Tensor

from refine.fusion.config import FusionConfig, Method
from refine.ops.masks import paste_masks
from refine.structures import Categories, Instances, PanopticResult, Segment


def fuse(
    instances: Instances,
    sem_seg: Tensor,
    *,
    categories: Categories,
    method: Method = "heuristic",
    sem_confidence: Tensor | None = None,
    config: FusionConfig | None = None,
) -> PanopticResult:
    config = config or FusionConfig()
    assert method == "heuristic"
    instances = instances[instances.scores >= config.score_threshold]
    instances = instances[torch.argsort(instances.scores, descending=True, stable=True)]
    masks = instances.masks
    if masks is None:
        masks = paste_masks(instances.roi_masks, instances.boxes, instances.image_size)
    ids = torch.zeros(sem_seg.shape, dtype=torch.int32)
    segments = []
    for mask, label, score in zip(masks, instances.labels.tolist(), instances.scores.tolist(), strict=True):
        area = int(mask.sum())
        free = mask & (ids == 0)
        kept = int(free.sum())
        if area == 0 or kept <= area * config.overlap_threshold:
            continue
        segments.append((label, score))
        ids[free] = len(segments)
    for index in torch.unique(sem_seg).tolist():
        if index < categories.num_things:
            continue
        region = (sem_seg == index) & (ids == 0)
        if int(region.sum()) >= config.stuff_area:
            segments.append((index, None))
            ids[region] = len(segments)
    infos = []
    for n, (label, score) in enumerate(segments, 1):
        ys, xs = torch.nonzero(ids == n, as_tuple=True)
        x, y = int(xs.min()), int(ys.min())
        infos.append(Segment(n, categories[label].id, categories[label].isthing, score, len(xs), (x, y, int(xs.max()) - x + 1, int(ys.max()) - y + 1)))
    return PanopticResult(ids, infos, categories)
