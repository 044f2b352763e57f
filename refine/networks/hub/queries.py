"""Predictions from the queries of a universal model: instances, semantic map, and the model's own merge.

A universal model (MaskFormer, Mask2Former, OneFormer, EoMT, DETR) predicts Q queries, each with class
probabilities and one mask for a thing or for all stuff of a class. Fusion needs instances and a semantic map:

- instances: queries whose best class is a thing, with its probability as score and the mask at 0.5;
- semantic map: the score of a class at a pixel is Σ_q p_q(class) · m_q(pixel), the models' own semantic inference.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from refine.formats.adapters import from_masks
from refine.fusion import FusionConfig, fuse
from refine.networks.hub.pixels import PixelScores
from refine.ops.masks import MaskRuns
from refine.ops.runs import run_lengths, run_starts
from refine.structures import VOID, Categories, Instances, PanopticResult, Prediction

AT_ONCE = 2**26
"""Maximum number of mask pixels that are computed at once."""

KEPT_SHARE = 0.8
"""Fraction of a query's mask that must stay visible for it to become a segment of the model's own merge."""


@dataclass(frozen=True)
class Queries:
    """Outputs of a universal model for one image.

    Attributes:
        scores: Tensor[Q, C] float, probability of each of refine's C classes.
        best: Tensor[Q] float, highest probability of a query over all labels of the model and "no object".
        is_object: Tensor[Q] bool, whether `best` is not that of "no object".
        label: Tensor[Q] int64, class of `best`, or `VOID` if it is none of refine's.
        maps: Tensor[Q, h, w] float, the masks at low resolution: probabilities, or logits if `of_logits`.
        of_logits: whether masks are resized to the image before the sigmoid, as in EoMT, or after it. EoMT's merge
            also gives void where no mask reaches 0.5, and measures masks without weighting them by the score.
        semantic: Tensor[C, h', w'] float, score of each class at low resolution, at least 0.
        size: (height, width) of the image in pixels.
    """

    scores: Tensor
    best: Tensor
    is_object: Tensor
    label: Tensor
    maps: Tensor
    of_logits: bool
    semantic: Tensor
    size: tuple[int, int]

    def masks(self, queries: Tensor) -> Tensor:
        """Return mask probabilities of some queries at the size of the image: Tensor[n] → Tensor[n, H, W]."""
        resized = F.interpolate(self.maps[queries][None], self.size, mode="bilinear", align_corners=False)[0]
        return resized.sigmoid() if self.of_logits else resized

    def prediction(self, categories: Categories, min_score: float, scale: float) -> Prediction:
        """Return instances and semantic map.

        Args:
            categories: categories of the C classes.
            min_score: minimum score of the instances, 0-1.
            scale: factor by which the image was resized for the network.
        """
        pixels = PixelScores(self.semantic, self.size, softmax=False)
        sem_seg, confidence = pixels.best()
        instances, queries = self._instances(categories.num_things, min_score)
        return Prediction(
            instances,
            sem_seg,
            confidence,
            pixels,
            scale,
            Merge(self, instances, queries, confidence, categories),
        )

    def _instances(self, num_things: int, min_score: float) -> tuple[Instances, Tensor]:
        """Return the instances with masks as runs, and the query of each, Tensor[N] int64."""
        scores, labels = self.scores.max(1)
        chosen = torch.nonzero((labels < num_things) & (scores >= min_score))[:, 0]
        if not len(chosen):
            return Instances.empty(self.size, self.scores.device), chosen
        at_once = max(1, AT_ONCE // (self.size[0] * self.size[1]))
        parts, queries = [], []
        for some in chosen.split(at_once):
            masks = self.masks(some) >= 0.5
            visible = masks.flatten(1).any(1)
            found = from_masks(masks[visible], labels[some[visible]], scores[some[visible]])
            parts.append(replace(found, masks=None, runs=found.mask_runs()))
            queries.append(some[visible])
        return Instances.joined(parts), torch.cat(queries)


@dataclass(frozen=True)
class Merge:
    """The models' own panoptic merge: each pixel goes to the query with the highest score times mask probability.

    A query becomes a segment if its pixels are more than `KEPT_SHARE` of its mask at 0.5; the pixels of other
    queries become void. Queries of one stuff class are one segment. The result equals that of
    `post_process_panoptic_segmentation` in transformers, except that segments never share an id (there, a thing
    can get the id of another after a stuff class was found for the second time).

    Attributes:
        queries: outputs of the model.
        instances: instances of the prediction.
        numbers: Tensor[N] int64, query of each instance.
        confidence: Tensor[H, W] float, 0-1, confidence of the semantic map, the score of stuff.
        categories: categories of the classes.
    """

    queries: Queries
    instances: Instances
    numbers: Tensor
    confidence: Tensor
    categories: Categories

    @torch.inference_mode()
    def __call__(self, min_score: float) -> PanopticResult:
        owner = self._owner(min_score)
        label = self.queries.label
        instance = torch.full_like(label, -1)
        instance[self.numbers] = torch.arange(len(self.numbers), device=label.device)
        runs = _runs_of(torch.where(owner >= 0, instance[owner], -1), len(self.numbers))
        of_stuff = (owner >= 0) & (label[owner] >= self.categories.num_things)
        return fuse(
            replace(self.instances, runs=runs, masks=None, roi_masks=None),
            torch.where(of_stuff, label[owner], VOID),
            categories=self.categories,
            sem_confidence=self.confidence,
            config=FusionConfig(score_threshold=0.0, overlap_threshold=1.0, stuff_area=0),
        )

    def _owner(self, min_score: float) -> Tensor:
        """Return the query that each pixel shows, Tensor[H, W] int64, or -1."""
        queries = self.queries
        device, count = queries.maps.device, len(queries.maps)
        owner = torch.full(queries.size, -1, device=device)
        best = torch.full(queries.size, -1.0, device=device)
        inside = torch.zeros(queries.size, dtype=torch.bool, device=device)
        areas = torch.zeros(count, dtype=torch.int64, device=device)
        for number in torch.nonzero(queries.is_object & (queries.best > min_score)):
            mask = queries.masks(number)[0]
            claim = mask * queries.best[number]
            large = (mask if queries.of_logits else claim) >= 0.5
            areas[number] = large.sum()
            better = claim > best
            owner = torch.where(better, number, owner)
            best = torch.where(better, claim, best)
            inside = torch.where(better, large, inside)
        visible = torch.bincount(owner.flatten() + 1, minlength=count + 1)[1:]
        valid = (visible > 0) & (areas > 0) & (visible / areas.clamp(min=1) > KEPT_SHARE)
        kept = (owner >= 0) & valid[owner]
        return torch.where(kept & inside if queries.of_logits else kept, owner, -1)


def _runs_of(labels: Tensor, count: int) -> MaskRuns:
    """Return the masks of labels 0..count-1 in a map, Tensor[H, W] int64; other values belong to no mask."""
    start = run_starts(labels)
    end = start + run_lengths(start, labels.numel())
    mask = labels.flatten()[start]
    order = torch.argsort(mask, stable=True)
    order = order[mask[order] >= 0]
    return MaskRuns((int(labels.shape[0]), int(labels.shape[1])), count, mask[order], start[order], end[order])
