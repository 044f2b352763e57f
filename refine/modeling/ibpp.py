"""Iterative bi-directional prediction projection (paper, equations 2 to 6; docs/method.md).

    iteration t:   F_sem, P_sem^(t-1) ──ROI-Align──▶ H̃_ins^t ──▶ m^(t)
                   m^(t) ──ROI-Flatten──▶ A^(t) ─┐
                   F_sem ────────────────────────┴▶ H̃_sem^t ──▶ P_sem^(t)

Gradients flow through both projections and through P_sem; never through boxes or scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from refine.modeling.config import ModelConfig
from refine.modeling.mask_head import MaskHead, add_semantics
from refine.modeling.semantic_head import RefiningSemanticHead, SemanticHead
from refine.modeling.spans import span
from refine.ops.roi import Sampling, align, roi_align_levels, roi_flatten

# Shape suffixes: B images, N boxes of all images, C features of the FPN, C_sem features of F_sem (equal to C in the
# paper), K thing classes, L classes, S = 14, M = 28.

STRIDE = 4
"""Input pixels per pixel of F_sem, P_sem and the canvas."""


@dataclass
class Boxes:
    """Boxes whose masks are computed.

    Attributes:
        rois: image index and box in input pixels, Tensor[N, 5], detached.
        labels: thing class of each box, Tensor[N] int64.
        scores: weights on the canvas, Tensor[N], 0-1, detached.
        features: f_ins + f_sem, or f_ins where f_sem is separate or not used, Tensor[N, C, S, S].
        f_sem: Tensor[N, C_sem, S, S] if it is separate (`exchange: balanced`), else None.
        before: with `ibpp.mask_flow`, features of the previous iteration's mask head, Tensor[N, width, S, S].
    """

    rois: Tensor
    labels: Tensor
    scores: Tensor
    features: Tensor
    f_sem: Tensor | None = None
    before: Tensor | None = None

    @property
    def appearance(self) -> Tensor:
        """Features of the occlusion head: f_ins + f_sem, or f_ins if their widths differ, Tensor[N, C, S, S]."""
        if self.f_sem is None or self.f_sem.shape[1] != self.features.shape[1]:
            return self.features
        return self.features + self.f_sem


class IBPP(nn.Module):
    """Heads of all T iterations, and the exchange between them.

    With T = 0 there is one plain mask head and no exchange, as in Panoptic-FPN.

    Args:
        config: config of the whole model.
        num_things: number K of thing classes.
        num_outputs: number L of channels of P_sem.
        sampling: RoIAlign settings.
    """

    def __init__(self, config: ModelConfig, num_things: int, num_outputs: int, sampling: Sampling) -> None:
        super().__init__()
        self.config = config.ibpp
        self.pool_size = config.mask_head.pool_size
        self.semantic_weight = config.mask_head.semantic_weight
        self.sampling = sampling
        self.num_things = num_things
        channels, sem_channels = config.fpn_channels, config.semantic_head.channels
        heads = 1 if self.config.shared or not self.config.iterations else self.config.iterations
        self.balanced = self.config.exchange != "paper"
        self.gain = channels**0.5 if self.balanced else 1.0
        routes = self.config.routes if self.config.iterations else []
        num_semantic = num_outputs if "p_sem" in routes else 0
        num_f_sem = sem_channels if self.balanced and "f_sem" in routes else 0
        self.mask_heads = nn.ModuleList(
            MaskHead(
                config.mask_head,
                channels,
                num_things,
                num_semantic,
                self.balanced,
                num_f_sem,
                flow=self.config.mask_flow and (t > 0 or self.config.shared) and self.config.iterations > 1,
            )
            for t in range(heads)
        )
        self.semantic_heads = nn.ModuleList(
            RefiningSemanticHead(self.config, config.semantic_head.norm, num_things, sem_channels, num_outputs)
            for _ in range(heads if self.config.iterations else 0)
        )

    def mask_head(self, t: int) -> MaskHead:
        """Return H̃_ins^t, t = 1..T, or H_ins for T = 0."""
        return self.mask_heads[0 if len(self.mask_heads) == 1 else t - 1]  # type: ignore[return-value]

    def semantic_head(self, t: int) -> RefiningSemanticHead:
        """Return H̃_sem^t, t = 1..T."""
        return self.semantic_heads[0 if len(self.semantic_heads) == 1 else t - 1]  # type: ignore[return-value]

    def boxes(
        self, pyramid: Sequence[Tensor], features: Tensor, rois: Tensor, labels: Tensor, scores: Tensor
    ) -> Boxes:
        """Compute f_ins and f_sem of each box, and their sum unless the exchange is balanced (equations 2 and 4).

        Args:
            pyramid: P2..P5, each Tensor[B, C, h_l, w_l].
            features: F_sem, Tensor[B, C_sem, h, w].
            rois, labels, scores: attributes of `Boxes`.
        """
        rois, scores = rois.detach(), scores.detach()
        f_ins = roi_align_levels(pyramid, rois, self.pool_size, self.sampling)
        if not self.config.iterations or "f_sem" not in self.config.routes:
            return Boxes(rois, labels, scores, f_ins)
        f_sem = align(features, rois, self.pool_size, self.sampling, STRIDE)
        if self.balanced:
            return Boxes(rois, labels, scores, f_ins, f_sem)
        return Boxes(rois, labels, scores, f_ins + f_sem)

    def project_boxes(self, t: int, boxes: Boxes, previous: Tensor | None = None) -> Tensor:
        """Apply the first convolution of H̃_ins^t to the features of the boxes: Tensor[N, width, S, S].

        `previous` is the result of the previous iteration for the same boxes, if any; with shared heads it is the
        same.
        """
        if previous is not None and self.config.shared:
            return previous
        return self.mask_head(t).project(boxes.features, boxes.f_sem)

    def project_pixels(self, t: int, features: Tensor, previous: Tensor | None = None) -> Tensor:
        """Apply the first convolution of H̃_sem^t to F_sem: Tensor[B, C_sem, h, w] → Tensor[B, width, h, w].

        `previous` is the result of the previous iteration, if any; with shared heads it is the same.
        """
        if previous is not None and self.config.shared:
            return previous
        return self.semantic_head(t).from_features(features)

    def instance_step(
        self,
        t: int,
        boxes: Boxes,
        source: Tensor,
        projected: Tensor | None = None,
        predictor: nn.Module | None = None,
    ) -> Tensor:
        """Compute the mask logits m^(t) (equations 3 and 4).

        Args:
            t: iteration, 1..T; ignored for T = 0.
            boxes: N boxes.
            source: P_sem^(t-1), Tensor[B, L, h, w], or, with `predictor`, the features from which it is computed.
            projected: result of `project_boxes`, if already computed.
            predictor: 1×1 convolution from these features to P_sem^(t-1). It commutes with ROI-Align, whose weights
                sum to one, and is cheaper on the bins than on the map.

        Returns:
            Tensor[N, M, M].
        """
        head = self.mask_head(t)
        if projected is None:
            projected = self.project_boxes(t, boxes)
        p_sem = None
        if head.from_semantic is not None:
            source = source.detach() if self.config.detach else source
            p_sem = align(source, boxes.rois, self.pool_size, self.sampling, STRIDE)
            if predictor is not None:
                p_sem = predictor(p_sem)  # N×L×S×S
            if self.balanced:
                p_sem = self.gain * p_sem.softmax(1)
        logits, features = head(projected, boxes.labels, p_sem, boxes.before)
        if self.config.mask_flow:
            boxes.before = features
        return logits

    def semantic_step(
        self, t: int, boxes: Boxes, masks: Tensor, projected: Tensor, present: Tensor | None = None
    ) -> Tensor:
        """Compute the features from which `next_logits` computes P_sem^(t) (equations 5 and 6).

        Args:
            t: iteration, 1..T.
            boxes: N boxes.
            masks: sigmoid(m^(t)), Tensor[N, M, M].
            projected: result of `project_pixels`, Tensor[B, width, h, w].
            present: sorted classes that occur among the labels, Tensor[k] int64, to which the canvas is restricted.

        Returns:
            Tensor[B, width, h, w].
        """
        head = self.semantic_head(t)
        if head.from_canvas is None:
            return head(None, projected)
        labels = boxes.labels if present is None else torch.searchsorted(present, boxes.labels)
        batch, _, height, width = projected.shape
        channels = self.num_things if present is None else len(present)
        canvas = roi_flatten(
            masks.detach() if self.config.detach else masks,
            boxes.rois,
            labels,
            boxes.scores,
            (batch, channels, height, width),
            STRIDE,
            self.config.flatten,
        )
        return head(self.gain * canvas if self.balanced else canvas, projected, present)

    def next_logits(self, t: int, refined: Tensor, before: Tensor) -> Tensor:
        """Compute P_sem^(t), Tensor[B, L, h, w], from the result of `semantic_step` and P_sem^(t-1)."""
        logits = self.semantic_head(t).predictor(refined)
        return before + logits if self.config.residual else logits

    @torch.no_grad()
    def predict(self, boxes: Boxes, features: Tensor, first: SemanticHead) -> tuple[Tensor, Tensor]:
        """Run all iterations on fixed boxes (docs/method.md, test).

        P_sem^(t), t < T, is computed inside the boxes only, unless the next iteration adds a residual to it.

        Args:
            boxes: detections of all images.
            features: F_sem, Tensor[B, C_sem, h, w].
            first: H_sem, which computes P_sem^(0).

        Returns:
            masks: mean of sigmoid(m^(t)) over the iterations, with the semantics added if
                `mask_head.semantic_weight` is not 0, Tensor[N, M, M], 0-1.
            sem_logits: P_sem^(T), Tensor[B, L, h, w].
        """
        if self.config.iterations:
            masks, sem_logits = self._iterate(boxes, features, first)
        else:
            with span("masks"):
                masks = torch.sigmoid(self.instance_step(0, boxes, features))
            with span("semantic head"):
                sem_logits = first(features)
        if self.semantic_weight and len(masks):
            with span("masks"):
                probabilities = sem_logits.float().softmax(1)
                probabilities = align(probabilities, boxes.rois, masks.shape[-1], self.sampling, STRIDE)
                masks = add_semantics(masks, probabilities, boxes.labels, self.semantic_weight)
        return masks, sem_logits

    def _iterate(self, boxes: Boxes, features: Tensor, first: SemanticHead) -> tuple[Tensor, Tensor]:
        """Run T > 0 iterations; arguments and results as in `predict`, without semantics in the masks."""
        last = self.config.iterations
        painted = torch.where(boxes.scores >= self.config.score_threshold, boxes.scores, 0)
        canvas_boxes = replace(boxes, scores=painted)
        present = torch.unique(boxes.labels)
        of_boxes: Tensor | None = None
        of_pixels: Tensor | None = None
        predictor: nn.Module | None
        source, predictor = features, first.predictor  # P_sem^(t-1) is predictor(source), or source without one
        if self.config.residual:
            with span("semantic head"):
                source, predictor = first(features), None
        total = torch.zeros((), device=features.device)
        for t in range(1, last + 1):
            number = f" {t}" if last > 1 else ""
            with span(f"masks{number}"):
                of_boxes = self.project_boxes(t, boxes, of_boxes)
                masks = torch.sigmoid(self.instance_step(t, boxes, source, of_boxes, predictor))
                total = total + masks
            with span(f"semantics{number}"):
                of_pixels = self.project_pixels(t, features, of_pixels)
                refined = self.semantic_step(t, canvas_boxes, masks, of_pixels, present)
                if self.config.residual:
                    source = self.next_logits(t, refined, source)
                elif t < last:
                    source, predictor = refined, self.semantic_head(t).predictor
                else:
                    source = self.semantic_head(t).predictor(refined)
        return total / last, source
