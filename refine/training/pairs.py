"""Pairs of detections whose order the ground truth determines, at the resolution of an occlusion head.

Of the detections only those in contested pairs are kept, so that the pairs of a large data set fit into memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from refine.inference.measures import Example, Fused, Measure
from refine.modeling.occlusion import detection_pairs
from refine.networks.occlusion import with_roi_masks
from refine.structures import Categories, Instances, Targets
from refine.training.update import derive_seed

SIDE = 14
"""Side S in pixels of the masks that the head sees, as in the paper."""

MOST = 128
"""Maximum number of pairs per image, chosen at random if there are more [OCFusion]."""

MASK_FIELDS = ("masks", "labels", "scores")
"""Fields of a `PairSet` with one entry per mask."""

HELD_OUT = 10
"""Every tenth image is not trained on, and shows how well the head orders pairs that it has not seen."""


@dataclass
class PairSet:
    """P pairs of N masks.

    Attributes:
        masks: Tensor[N, S, S] float16, 0-1, max-pooled masks over their boxes.
        labels: Tensor[N] int64, contiguous thing class.
        scores: Tensor[N] float32.
        pairs: Tensor[P, 2] int64, indices (front, back).
    """

    masks: Tensor = field(default_factory=lambda: torch.zeros(0, SIDE, SIDE, dtype=torch.float16))
    labels: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    scores: Tensor = field(default_factory=lambda: torch.zeros(0))
    pairs: Tensor = field(default_factory=lambda: torch.zeros(0, 2, dtype=torch.int64))

    @classmethod
    def of(cls, instances: Instances, pairs: Tensor) -> PairSet:
        """Keep what the head uses of the instances in the pairs, on the CPU."""
        involved, index = torch.unique(pairs, return_inverse=True)
        chosen = with_roi_masks(instances[involved])
        assert chosen.roi_masks is not None
        masks = F.adaptive_max_pool2d(chosen.roi_masks.float(), SIDE).half()
        return cls(masks.cpu(), chosen.labels.cpu(), chosen.scores.float().cpu(), index.cpu())

    @classmethod
    def joined(cls, parts: Sequence[PairSet]) -> PairSet:
        """Join sets."""
        if not parts:
            return cls()
        first = torch.tensor([0, *(len(part.labels) for part in parts[:-1])]).cumsum(0)
        pairs = [part.pairs + start for part, start in zip(parts, first, strict=True)]
        masks, labels, scores = (torch.cat([getattr(part, name) for part in parts]) for name in MASK_FIELDS)
        return cls(masks, labels, scores, torch.cat(pairs))

    def batch(self, chosen: Tensor, flipped: Tensor, device: torch.device) -> tuple[Instances, Tensor]:
        """Return the instances of some pairs, Tensor[B] int64, all fronts before all backs, and their pairs.

        Args:
            chosen: indices of the pairs.
            flipped: Tensor[B] bool, pairs whose masks are mirrored.
            device: device of the result.
        """
        index = self.pairs[chosen].T.flatten()
        masks = self.masks[index].to(device).float()
        masks = torch.where(flipped.repeat(2).to(device)[:, None, None], masks.flip(2), masks)
        none = torch.zeros(len(index), 4, device=device)
        instances = Instances((1, 1), none, none[:, 0], self.labels[index].to(device), roi_masks=masks)
        return instances, torch.arange(len(index), device=device).view(2, -1).T


class ContestedPairs(Measure):
    """Pairs of overlapping detections whose order the ground truth determines, for training and held out.

    Instance annotations whose masks overlap give further pairs for training [BCC].

    Args:
        min_score: minimum score of the detections, 0-1.
        pair_overlap: minimum overlap ρ of a pair, as a fraction of either mask.
        false_pairs: whether to add pairs of a true detection, in front, and a false or duplicate one.
        seed: seed of the choice among more than `MOST` pairs of an image.
        advance: called after each image.

    Attributes:
        trained, annotated, held_out: pairs of detections and of annotations to train on, and of the detections in
            every tenth image.
        images: number of images.
    """

    before_fusion: ClassVar[bool] = True

    def __init__(
        self, min_score: float, pair_overlap: float, false_pairs: bool, seed: int, advance: Callable[[], None]
    ) -> None:
        self.min_score, self.pair_overlap, self.false_pairs, self.seed = min_score, pair_overlap, false_pairs, seed
        self.advance = advance

    def reset(self, categories: Categories) -> None:
        self.trained, self.annotated, self.held_out = list[PairSet](), list[PairSet](), list[PairSet]()
        self.images = 0

    def update(self, example: Example, fused: Fused) -> None:
        found, targets = example.prediction.instances, example.targets
        found = found[found.scores >= self.min_score]
        pairs = self._pairs(found, targets.to(found.boxes.device), example.number)
        self.images += 1
        self.advance()
        if example.number % HELD_OUT == HELD_OUT - 1:
            self.held_out += pairs
            return
        self.trained += pairs
        scores = torch.ones_like(targets.boxes[:, 0])
        true = Instances(targets.size, targets.boxes, scores, targets.labels, masks=targets.masks)
        self.annotated += self._pairs(true[~targets.iscrowd], targets, example.number)

    def _pairs(self, instances: Instances, targets: Targets, number: int) -> list[PairSet]:
        """Return the pairs of an image as one set, or none."""
        masks = instances.mask_runs().dense().flatten(1)
        pairs, false = detection_pairs(masks, instances.labels, targets, self.pair_overlap)
        if self.false_pairs:
            pairs = torch.cat([pairs, false])
        if len(pairs) > MOST:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, number))
            pairs = pairs[torch.randperm(len(pairs), generator=generator)[:MOST].to(pairs.device)]
        return [PairSet.of(instances, pairs)] if len(pairs) else []

    def merge(self, other: ContestedPairs) -> None:
        self.trained += other.trained
        self.annotated += other.annotated
        self.held_out += other.held_out
        self.images += other.images

    def compute(self) -> dict[str, float]:
        """Return no numbers."""
        return {}
