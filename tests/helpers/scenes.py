"""Small crowded scenes, and results of `fuse` in a form that is easy to compare."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from refine.fusion import FusionConfig, Method, fuse
from refine.structures import Categories, Category, Instances, PanopticResult
from refine.structures.targets import mask_boxes

THINGS, STUFF = 3, 3
CATEGORIES = Categories([Category(10 + n, f"c{n}", n < THINGS, (n, n, n)) for n in range(THINGS + STUFF)])
SMALL = FusionConfig(score_threshold=0.3, stuff_area=12)


@dataclass
class Scene:
    """Overlapping instances with the inputs of every fusion rule."""

    instances: Instances
    sem_seg: Tensor
    confidence: Tensor
    occlusion: Tensor
    ranking: Tensor

    def fuse(self, method: Method, config: FusionConfig = SMALL, **changes) -> PanopticResult:
        given = {
            "sem_confidence": self.confidence,
            "occlusion": self.occlusion,
            "ranking": self.ranking,
        }
        return fuse(
            self.instances, self.sem_seg, categories=CATEGORIES, method=method, config=config, **(given | changes)
        )


def scene(seed: int, count: int = 8, size: tuple[int, int] = (16, 20)) -> Scene:
    """Return rectangles and ellipses, some empty or with holes, over patches of stuff, things and void."""
    g = torch.Generator().manual_seed(seed)
    height, width = size
    y, x = torch.arange(height)[:, None], torch.arange(width)
    masks = torch.zeros(count, height, width, dtype=torch.bool)
    for n in range(count):
        cy, cx, ry, rx, kind = (torch.rand(5, generator=g) * torch.tensor([height, width, 7, 8, 8])).tolist()
        inside = ((y - cy) / (ry + 0.5)) ** 2 + ((x - cx) / (rx + 0.5)) ** 2 <= 1
        if kind < 3:
            inside = ((y - cy).abs() <= ry) & ((x - cx).abs() <= rx)
        masks[n] = inside & (torch.rand(height, width, generator=g) < (0.7 if kind > 6 else 1.0)) & (kind > 0.3)
    patches = torch.randint(-1, THINGS + STUFF, (height // 4, width // 4), generator=g)
    jitter = torch.rand(count, 4, generator=g) * 2 - 1  # boxes of detectors are not tight
    boxes = torch.where(masks.any((1, 2))[:, None], mask_boxes(masks), torch.tensor([0.0, 0, 2, 2])) + jitter
    boxes[:, 2:] = torch.maximum(boxes[:, :2], boxes[:, 2:])
    return Scene(
        Instances(
            size,
            boxes=boxes,
            scores=torch.rand(count, generator=g) * 0.8 + 0.2,
            labels=torch.randint(0, THINGS, (count,), generator=g),
            masks=masks,
        ),
        sem_seg=patches.repeat_interleave(4, 0).repeat_interleave(4, 1),
        confidence=torch.rand(height, width, generator=g),
        occlusion=torch.rand(count, count, generator=g),
        ranking=torch.rand(count, generator=g),
    )


def drawn(*drawings: str) -> Tensor:
    """Return masks from drawings with rows separated by spaces and # for pixels inside."""
    return torch.tensor([[[p == "#" for p in row] for row in drawing.split()] for drawing in drawings])


def of_masks(masks: Tensor, scores: list[float], labels: list[int] | None = None) -> Instances:
    return Instances(
        tuple(masks.shape[1:]),
        boxes=mask_boxes(masks),
        scores=torch.tensor(scores),
        labels=torch.tensor(labels or [0] * len(masks)),
        masks=masks,
    )


def shown(result: PanopticResult) -> np.ndarray:
    """What each pixel shows: instance n as n, stuff class c as 1000 + c, nothing as -1."""
    names = [-1] * (max((s.id for s in result.segments), default=0) + 1)
    for segment in result.segments:
        place = segment.instance
        names[segment.id] = 1000 + CATEGORIES.index(segment.category_id) if place is None else place
    return np.array(names)[result.segment_ids.numpy()]
