"""Training losses of the network (docs/method.md, training)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from refine.modeling.box_head import SampledBoxes
from refine.modeling.config import ModelConfig
from refine.modeling.ibpp import Boxes
from refine.modeling.mask_head import mask_loss, mask_targets
from refine.modeling.nanodet import NanoDetOutput
from refine.modeling.occlusion import contested_pairs, occlusion_loss
from refine.modeling.ranking import ranking_loss
from refine.modeling.semantic_head import pad_labels, semantic_loss
from refine.ops.roi import to_rois
from refine.structures import VOID, ImageBatch, Instances, Targets

if TYPE_CHECKING:
    from refine.modeling.model import PanopticModel

FUSION_HEADS = ("occlusion.", "ranking.")
"""Name prefixes of the parameters of the fusion heads."""


def compute_losses(model: PanopticModel, images: ImageBatch, targets: Sequence[Targets]) -> dict[str, Tensor]:
    """Compute the losses of RPN, boxes, masks m^(1..T) and semantics P_sem^(0..T) (docs/method.md, training).

    Args:
        images: batch of B images.
        targets: ground truth of the images, on the same device.

    Returns:
        `loss_rpn_*`, `loss_cls_t`, `loss_box_t`, `loss_mask_t`, `loss_sem_t`, `loss_occlusion` and
        `loss_ranking`, weighted scalars; only the last two if only the fusion heads are trained.
    """
    trained = any(p.requires_grad for n, p in model.named_parameters() if not n.startswith(FUSION_HEADS))
    with nullcontext() if trained else torch.no_grad():
        seen = model.run_detector(images)
        pyramid = model.pyramid(images, seen)
        features = model.semantic_head.features(pyramid[:4])
    if not trained:
        return _fusion_losses(model, images, seen, pyramid, features, targets)
    config = model.config
    sem_logits = model.semantic_head(features)
    fusion_losses = _fusion_losses(model, images, seen, pyramid, features, targets)
    sem_seg = semantic_targets(model, images, targets)
    iterations, stages = config.ibpp.iterations, 0
    of_boxes: Tensor | None = None
    of_pixels: Tensor | None = None
    losses = {"loss_sem_0": _semantic_loss(model, sem_logits, sem_seg, 0)}
    if seen is not None:
        boxes, mask_truth = detected_samples(model, images, seen, pyramid, features, targets)
    else:
        stages = len(config.box_head.ious)
        rpn_output = model.rpn(pyramid)
        losses |= model.rpn.losses(rpn_output, targets)
        proposals = model.rpn.propose(rpn_output, images.sizes, training=True)
        samples = model.box_heads.sample(proposals, targets)
    for t in range(1, max(iterations, stages, 1) + 1):
        if t <= stages:
            stage_losses, probabilities, refined = model.box_heads.stage_loss(t - 1, pyramid[:4], samples, targets)
            losses |= {k: instance_weight(config, t, box=True) * v for k, v in stage_losses.items()}
            if t <= max(iterations, 1):  # after the last stage the boxes are fixed
                boxes, mask_truth = _mask_samples(model, pyramid, features, samples, probabilities, targets)
                of_boxes = None
            samples = refined
        if t <= max(iterations, 1):
            of_boxes = model.ibpp.project_boxes(t, boxes, of_boxes)
            mask_logits = model.ibpp.instance_step(t, boxes, sem_logits, of_boxes)
            weight = config.losses.mask * instance_weight(config, t, box=False)
            losses[f"loss_mask_{t}"] = weight * mask_loss(mask_logits[: len(mask_truth)], mask_truth)
        if t <= iterations:
            of_pixels = model.ibpp.project_pixels(t, features, of_pixels)
            hidden = model.ibpp.semantic_step(t, boxes, torch.sigmoid(mask_logits), of_pixels)
            sem_logits = model.ibpp.next_logits(t, hidden, sem_logits)
            losses[f"loss_sem_{t}"] = _semantic_loss(model, sem_logits, sem_seg, t)
    return losses | fusion_losses


@torch.enable_grad()
def _fusion_losses(
    model: PanopticModel,
    images: ImageBatch,
    seen: NanoDetOutput | None,
    pyramid: Sequence[Tensor],
    features: Tensor,
    targets: Sequence[Targets],
) -> dict[str, Tensor]:
    """Compute the losses of the fusion heads on detached instances.

    The ranking is trained on detections, the occlusion head on detections and ground-truth boxes, which have
    many more pairs whose order the ground truth determines.
    """
    if model.occlusion is None and model.ranking is None:
        return {}
    detected = [p.instances for p in model.detect(images, seen, pyramid, features)]
    losses = {}
    if model.occlusion is not None:
        true = [
            Instances(size, t.boxes, torch.ones_like(t.boxes[:, 0]), t.labels)[~t.iscrowd]
            for t, size in zip(targets, images.sizes, strict=True)
        ]
        true = [p.instances for p in model.segment(images, pyramid, features, true)]
        config, instances = model.occlusion.config, [*detected, *true]
        pairs = [
            contested_pairs(i, t, config.pair_overlap, config.false_pairs)
            for i, t in zip(instances, [*targets, *targets], strict=True)
        ]
        losses["loss_occlusion"] = occlusion_loss(model.occlusion, instances, pairs)
    if model.ranking is not None:
        losses["loss_ranking"] = ranking_loss(model.ranking, detected, targets)
    return losses


def _mask_samples(
    model: PanopticModel,
    pyramid: Sequence[Tensor],
    features: Tensor,
    samples: Sequence[SampledBoxes],
    probabilities: Sequence[Tensor],
    targets: Sequence[Targets],
) -> tuple[Boxes, Tensor]:
    """Return the positive samples with their appearance, and the true masks inside them, Tensor[N, M, M].

    The weight of a sample on the canvas is its predicted probability of the true class.
    """
    positives = [s.positives() for s in samples]
    labels = torch.cat([s.labels for s in positives])
    scores = torch.cat([p[s.is_positive] for p, s in zip(probabilities, samples, strict=True)])
    rois = to_rois([s.boxes for s in positives])
    boxes = model.ibpp.boxes(pyramid[:4], features, rois, labels, scores.gather(1, labels[:, None])[:, 0])
    return boxes, _mask_targets(model, positives, targets)


def detected_samples(
    model: PanopticModel,
    images: ImageBatch,
    seen: NanoDetOutput,
    pyramid: Sequence[Tensor],
    features: Tensor,
    targets: Sequence[Targets],
) -> tuple[Boxes, Tensor]:
    """Return the samples and true masks as `_mask_samples`, for the detector's boxes and the true boxes.

    With T > 0, false positives follow at the end: they have no true mask, but are painted on the canvas as at
    test.
    """
    assert model.detector is not None
    positives, scores, false = model.detector.sample(model.detector.detect(images, seen), targets)
    painted = model.config.ibpp.score_threshold if model.config.ibpp.iterations else torch.inf
    false = [f[f.scores >= painted] for f in false]
    boxes = model.ibpp.boxes(
        pyramid[:4],
        features,
        torch.cat([to_rois([s.boxes for s in positives]), to_rois([f.boxes for f in false])]),
        torch.cat([s.labels for s in positives] + [f.labels for f in false]),
        torch.cat(scores + [f.scores for f in false]),
    )
    return boxes, _mask_targets(model, positives, targets)


def _mask_targets(model: PanopticModel, positives: Sequence[SampledBoxes], targets: Sequence[Targets]) -> Tensor:
    """Return the true masks inside the positive samples, Tensor[N, M, M]."""
    return mask_targets(
        [t.masks for t in targets],
        [s.boxes for s in positives],
        [s.matched for s in positives],
        2 * model.config.mask_head.pool_size,
    )


def semantic_targets(model: PanopticModel, images: ImageBatch, targets: Sequence[Targets]) -> Tensor:
    """Return the semantic channel of each pixel, Tensor[B, H, W] int64, `VOID` where unlabelled or padded."""
    height, width = images.tensor.shape[-2:]
    sem_seg = pad_labels([t.sem_seg for t in targets], (height, width))
    if model.config.semantic_head.classes == "stuff":
        merged = torch.where(sem_seg < model.num_things, 0, sem_seg - model.num_things + 1)
        sem_seg = torch.where(sem_seg == VOID, VOID, merged)
    return sem_seg


def _semantic_loss(model: PanopticModel, logits: Tensor, sem_seg: Tensor, t: int) -> Tensor:
    """Return the weighted cross-entropy of P_sem^(t), at full size for t = T."""
    stuff = 1 if model.config.semantic_head.classes == "stuff" else model.num_things
    loss = semantic_loss(logits, sem_seg, full_size=t == model.config.ibpp.iterations, first_stuff=stuff)
    return semantic_weight(model.config, t) * loss


def semantic_weight(config: ModelConfig, t: int) -> float:
    """Return w_t, the loss weight of P_sem^(t); those with t < T are auxiliary."""
    losses = config.losses
    return losses.semantic_last if t == config.ibpp.iterations else losses.semantic_other


def instance_weight(config: ModelConfig, t: int, box: bool) -> float:
    """Return a_t, the loss weight of masks or boxes: by default 1/T and 1; see `LossConfig`."""
    losses = config.losses
    if losses.instance:
        return losses.instance[min(t, len(losses.instance)) - 1]
    if len(config.box_head.ious) > 1 and losses.cascade == "loss":
        return (1.0, 0.5, 0.25)[min(t, 3) - 1]
    return 1.0 if box else 1.0 / max(config.ibpp.iterations, 1)
