"""REFINE's network, from images to losses, or to instances and semantic logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from refine.bounds import check_bounds
from refine.errors import RefineError
from refine.modeling.backbones import build_backbone
from refine.modeling.box_head import BoxHeads, SampledBoxes
from refine.modeling.config import ModelConfig
from refine.modeling.detector import Detector
from refine.modeling.fpn import FPN
from refine.modeling.ibpp import IBPP, Boxes
from refine.modeling.mask_head import mask_loss, mask_targets
from refine.modeling.nanodet import NanoDetOutput
from refine.modeling.norms import over_valid_pixels
from refine.modeling.occlusion import OcclusionHead, contested_pairs, occlusion_loss
from refine.modeling.ranking import SpatialRanking, ranking_loss
from refine.modeling.rpn import RegionProposals
from refine.modeling.semantic_head import SemanticHead, pad_labels, semantic_loss
from refine.modeling.spans import span
from refine.ops.roi import Sampling, to_rois
from refine.structures import VOID, ImageBatch, Instances, Targets
from refine.tensors import check_finite

FUSION_HEADS = ("occlusion.", "ranking.")
"""Name prefixes of the parameters of the fusion heads."""


@dataclass
class NetworkOutput:
    """Output of the network for one image, before fusion.

    Attributes:
        instances: boxes, scores, labels and `roi_masks` (and `features` if the model has an occlusion head), in
            pixels of the unpadded network input, by decreasing score.
        sem_logits: Tensor[L, h, w], P_sem^(T) at stride 4 of the padded input.
        image_size: (height, width) of the unpadded network input.
        boxes_finite: Tensor[] bool, whether all outputs of the RPN and box heads, or of the detector, were finite,
            including those of boxes that became no instances; None if the boxes were given.
    """

    instances: Instances
    sem_logits: Tensor
    image_size: tuple[int, int]
    boxes_finite: Tensor | None = None

    def check_finite(self, image: str) -> None:
        """Raise RefineError if a value is NaN or infinite; `image` names the image in the message."""
        found = self.instances
        values = {"boxes": found.boxes, "scores": found.scores, "semantic logits": self.sem_logits}
        if self.boxes_finite is not None:
            values["proposals and box scores"] = self.boxes_finite.float().log()  # 0 or -inf
        check_finite(values if found.roi_masks is None else values | {"masks": found.roi_masks}, image)


class PanopticModel(nn.Module):
    """Panoptic-FPN (T = 0), Cascade Panoptic-FPN (three IoUs) and REFINE (T > 0).

    The fusion heads, `occlusion` and `ranking`, are trained on detached masks and features of the network's own
    detections and of the ground-truth boxes: jointly with the rest, or alone in a second stage
    (`optim.train_only: [occlusion]`).

    Training: `loss(images, targets)` returns weighted `loss_*` terms to be summed.
    Test: `predict(images)` returns one `NetworkOutput` per image.

    Args:
        config: configuration of all parts.
        num_things: number K of thing classes.
        num_classes: number of thing and stuff classes.

    Raises:
        RefineError: the parts do not fit together, such as T > 0 with different widths of F_sem and FPN.
    """

    semantic_classes: Tensor
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: ModelConfig, num_things: int, num_classes: int) -> None:
        super().__init__()
        check_bounds(config, "model")
        merged = config.semantic_head.classes == "stuff"
        if config.ibpp.iterations:
            if config.semantic_head.channels != config.fpn_channels:
                raise RefineError(
                    f"semantic_head.channels is {config.semantic_head.channels}, fpn_channels "
                    f"{config.fpn_channels}: IBPP sums f_ins and f_sem; make them equal"
                )
            if merged:
                raise RefineError("semantic_head.classes is 'stuff': IBPP (T > 0) needs 'all'; change it")
            if config.ibpp.mask_flow and len(config.box_head.ious) > 1:
                raise RefineError("ibpp.mask_flow needs fixed boxes, but a cascade moves them; set it to false")
        self.config = config
        self.num_things = num_things
        self.num_classes = num_classes
        num_outputs = num_classes - num_things + 1 if merged else num_classes
        self.backbone = build_backbone(config.backbone)
        channels = self.backbone.channels
        self.detector: Detector | None = None
        if config.detector is not None:
            pixels = (config.pixel_mean, config.pixel_std, config.channels)
            self.detector = Detector(config.detector, num_things, *pixels)
            channels = [own + extra for own, extra in zip(channels, self.detector.channels, strict=True)]
        self.fpn = FPN(channels, config.fpn_channels, config.fpn_norm)
        sampling = Sampling(config.roi_sampling, config.roi_aligned, config.roi_canonical_size)
        if config.detector is None:
            self.rpn = RegionProposals(config.rpn, config.fpn_channels)
            share_gradient = config.losses.cascade == "gradient"
            self.box_heads = BoxHeads(config.box_head, config.fpn_channels, num_things, sampling, share_gradient)
        self.semantic_head = SemanticHead(config.semantic_head, config.fpn_channels, num_outputs)
        self.ibpp = IBPP(config, num_things, num_outputs, sampling)
        self.occlusion: OcclusionHead | None = None
        if config.occlusion is not None:
            size = config.mask_head.pool_size
            self.occlusion = OcclusionHead(config.occlusion, config.fpn_channels, num_things, size)
        self.ranking = SpatialRanking(num_things) if config.ranking else None
        # Contiguous class of each semantic channel, VOID for the merged thing class.
        classes = [VOID, *range(num_things, num_classes)] if merged else list(range(num_classes))
        self.register_buffer("semantic_classes", torch.tensor(classes), persistent=False)
        self.register_buffer("pixel_mean", torch.tensor(config.pixel_mean), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(config.pixel_std), persistent=False)
        if config.channels_last:
            self.to(memory_format=torch.channels_last)

    def image_batch(self, images: Sequence[Tensor]) -> ImageBatch:
        """Normalise and pad images, each Tensor[3, h, w] uint8 RGB, to a batch on the model's device."""
        return ImageBatch.from_images(
            [image.to(self.pixel_mean.device, non_blocking=True) for image in images],
            self.pixel_mean,
            self.pixel_std,
            self.config.divisor,
            flip_channels=self.config.channels == "BGR",
        )

    def run_detector(self, images: ImageBatch) -> NanoDetOutput | None:
        """Run the detector, whose output serves the pyramid and the detections; None without a detector."""
        if self.detector is None:
            return None
        with span("detector"):
            return self.detector(images)

    def pyramid(self, images: ImageBatch, seen: NanoDetOutput | None = None) -> list[Tensor]:
        """Compute P2..P6, each Tensor[B, C, H/stride, W/stride]; `seen` is the output of `run_detector`."""
        with span("backbone"):
            maps = self.backbone(images.tensor)
        if self.detector is not None and self.detector.config.features:
            extra = self.detector.maps(seen or self.detector(images), maps)
            maps = [torch.cat(pair, 1) for pair in zip(maps, extra, strict=True)]
        with span("fpn"):
            return self.fpn(maps)

    @over_valid_pixels
    def loss(self, images: ImageBatch, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Compute the losses of RPN, boxes, masks m^(1..T) and semantics P_sem^(0..T) (docs/method.md, training).

        Args:
            images: batch of B images.
            targets: ground truth of the images, on the same device.

        Returns:
            `loss_rpn_*`, `loss_cls_t`, `loss_box_t`, `loss_mask_t`, `loss_sem_t`, `loss_occlusion` and
            `loss_ranking`, weighted scalars; only the last two if only the fusion heads are trained.
        """
        if not any(p.requires_grad for n, p in self.named_parameters() if not n.startswith(FUSION_HEADS)):
            with torch.no_grad():
                seen = self.run_detector(images)
                pyramid = self.pyramid(images, seen)
                features = self.semantic_head.features(pyramid[:4])
                return self._fusion_losses(images, seen, pyramid, features, targets)
        config = self.config
        seen = self.run_detector(images)
        pyramid = self.pyramid(images, seen)
        features = self.semantic_head.features(pyramid[:4])
        sem_logits = self.semantic_head(features)
        fusion_losses = self._fusion_losses(images, seen, pyramid, features, targets)
        sem_seg = self._semantic_targets(images, targets)
        iterations, stages = config.ibpp.iterations, 0
        losses = {"loss_sem_0": self._semantic_loss(sem_logits, sem_seg, 0)}
        if seen is not None:
            boxes, mask_truth = self._detected_samples(images, seen, pyramid, features, targets)
        else:
            stages = len(config.box_head.ious)
            rpn_output = self.rpn(pyramid)
            losses |= self.rpn.losses(rpn_output, targets)
            proposals = self.rpn.propose(rpn_output, images.sizes, training=True)
            samples = self.box_heads.sample(proposals, targets)
        for t in range(1, max(iterations, stages, 1) + 1):
            if t <= stages:
                stage_losses, probabilities, refined = self.box_heads.stage_loss(
                    t - 1, pyramid[:4], samples, targets
                )
                losses |= {k: self._instance_weight(t, box=True) * v for k, v in stage_losses.items()}
                if t <= max(iterations, 1):  # after the last stage the boxes are fixed
                    boxes, mask_truth = self._mask_samples(pyramid, features, samples, probabilities, targets)
                samples = refined
            if t <= max(iterations, 1):
                mask_logits = self.ibpp.instance_step(t, boxes, sem_logits)
                weight = config.losses.mask * self._instance_weight(t, box=False)
                losses[f"loss_mask_{t}"] = weight * mask_loss(mask_logits[: len(mask_truth)], mask_truth)
            if t <= iterations:
                head, masks = self.ibpp.semantic_head(t), torch.sigmoid(mask_logits)
                hidden = self.ibpp.semantic_step(t, boxes, masks, head.from_features(features))
                sem_logits = self.ibpp.next_logits(t, hidden, sem_logits)
                losses[f"loss_sem_{t}"] = self._semantic_loss(sem_logits, sem_seg, t)
        return losses | fusion_losses

    @torch.enable_grad()
    def _fusion_losses(
        self,
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
        if self.occlusion is None and self.ranking is None:
            return {}
        detected = [p.instances for p in self._detect(images, seen, pyramid, features)]
        losses = {}
        if self.occlusion is not None:
            true = [
                Instances(size, t.boxes, torch.ones_like(t.boxes[:, 0]), t.labels)[~t.iscrowd]
                for t, size in zip(targets, images.sizes, strict=True)
            ]
            true = [p.instances for p in self._segment(images, pyramid, features, true)]
            config, instances = self.occlusion.config, [*detected, *true]
            pairs = [
                contested_pairs(i, t, config.pair_overlap, config.false_pairs)
                for i, t in zip(instances, [*targets, *targets], strict=True)
            ]
            losses["loss_occlusion"] = occlusion_loss(self.occlusion, instances, pairs)
        if self.ranking is not None:
            losses["loss_ranking"] = ranking_loss(self.ranking, detected, targets)
        return losses

    def _mask_samples(
        self,
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
        boxes = self.ibpp.boxes(pyramid[:4], features, rois, labels, scores.gather(1, labels[:, None])[:, 0])
        return boxes, self._mask_targets(positives, targets)

    def _detected_samples(
        self,
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
        assert self.detector is not None
        positives, scores, false = self.detector.sample(self.detector.detect(images, seen), targets)
        painted = self.config.ibpp.score_threshold if self.config.ibpp.iterations else torch.inf
        false = [f[f.scores >= painted] for f in false]
        boxes = self.ibpp.boxes(
            pyramid[:4],
            features,
            torch.cat([to_rois([s.boxes for s in positives]), to_rois([f.boxes for f in false])]),
            torch.cat([s.labels for s in positives] + [f.labels for f in false]),
            torch.cat(scores + [f.scores for f in false]),
        )
        return boxes, self._mask_targets(positives, targets)

    def _mask_targets(self, positives: Sequence[SampledBoxes], targets: Sequence[Targets]) -> Tensor:
        """Return the true masks inside the positive samples, Tensor[N, M, M]."""
        return mask_targets(
            [t.masks for t in targets],
            [s.boxes for s in positives],
            [s.matched for s in positives],
            2 * self.config.mask_head.pool_size,
        )

    @torch.no_grad()
    @over_valid_pixels
    def predict(self, images: ImageBatch, min_score: float = 0.0) -> list[NetworkOutput]:
        """Detect boxes (with all stages of a cascade), then run T iterations on them (docs/method.md, test).

        Args:
            images: batch of B images.
            min_score: minimum score of the detections that the caller uses, 0-1. Others are dropped, which saves
                their masks, unless they are painted on the canvas and so affect the semantics.

        Returns:
            One output per image.
        """
        seen = self.run_detector(images)
        pyramid = self.pyramid(images, seen)
        with span("semantic head"):
            features = self.semantic_head.features(pyramid[:4])
        return self._detect(images, seen, pyramid, features, min_score)

    @torch.no_grad()
    def _detect(
        self,
        images: ImageBatch,
        seen: NanoDetOutput | None,
        pyramid: Sequence[Tensor],
        features: Tensor,
        min_score: float = 0.0,
    ) -> list[NetworkOutput]:
        """Predict from the pyramid and F_sem."""
        if self.config.ibpp.iterations:
            min_score = min(min_score, self.config.ibpp.score_threshold)
        if self.detector is not None and seen is not None:
            with span("detector"):
                detections = self.detector.detect(images, seen, min_score)
            finite = _finite_images([*seen.classes, *seen.sides])
        else:
            with span("rpn"):
                found = self.rpn(pyramid)
                proposals = self.rpn.propose(found, images.sizes, training=False)
            with span("box heads"):
                detections, finite = self.box_heads.predict(pyramid[:4], proposals, images.sizes)
            finite = finite & _finite_images([*found.objectness, *found.deltas])
        if min_score > 0:
            detections = [d[d.scores >= min_score] for d in detections]
        outputs = self._segment(images, pyramid, features, detections)
        return [replace(output, boxes_finite=good) for output, good in zip(outputs, finite, strict=True)]

    @torch.no_grad()
    def _segment(
        self,
        images: ImageBatch,
        pyramid: Sequence[Tensor],
        features: Tensor,
        detections: Sequence[Instances],
    ) -> list[NetworkOutput]:
        """Compute masks of given boxes, labels and scores, and semantics, by T iterations."""
        rois = to_rois([d.boxes for d in detections])
        labels = torch.cat([d.labels for d in detections])
        scores = torch.cat([d.scores for d in detections])
        with span("roi features"):
            boxes = self.ibpp.boxes(pyramid[:4], features, rois, labels, scores)
        masks, sem_logits = self.ibpp.predict(boxes, features, self.semantic_head)
        counts = [len(d) for d in detections]
        appearance = boxes.appearance.split(counts) if self.config.occlusion else [None] * len(counts)
        return [
            NetworkOutput(replace(d, roi_masks=m, features=f), s, size)
            for d, m, f, s, size in zip(
                detections, masks.split(counts), appearance, sem_logits, images.sizes, strict=True
            )
        ]

    def _semantic_targets(self, images: ImageBatch, targets: Sequence[Targets]) -> Tensor:
        """Return the semantic channel of each pixel, Tensor[B, H, W] int64, `VOID` where unlabelled or padded."""
        height, width = images.tensor.shape[-2:]
        sem_seg = pad_labels([t.sem_seg for t in targets], (height, width))
        if self.config.semantic_head.classes == "stuff":
            merged = torch.where(sem_seg < self.num_things, 0, sem_seg - self.num_things + 1)
            sem_seg = torch.where(sem_seg == VOID, VOID, merged)
        return sem_seg

    def _semantic_loss(self, logits: Tensor, sem_seg: Tensor, t: int) -> Tensor:
        """Return the weighted cross-entropy of P_sem^(t), at full size for t = T."""
        stuff = 1 if self.config.semantic_head.classes == "stuff" else self.num_things
        loss = semantic_loss(logits, sem_seg, full_size=t == self.config.ibpp.iterations, first_stuff=stuff)
        return self._semantic_weight(t) * loss

    def _semantic_weight(self, t: int) -> float:
        """Return w_t, the loss weight of P_sem^(t); those with t < T are auxiliary."""
        losses = self.config.losses
        return losses.semantic_last if t == self.config.ibpp.iterations else losses.semantic_other

    def _instance_weight(self, t: int, box: bool) -> float:
        """Return a_t, the loss weight of masks or boxes: by default 1/T and 1; see `LossConfig`."""
        losses = self.config.losses
        if losses.instance:
            return losses.instance[min(t, len(losses.instance)) - 1]
        if len(self.config.box_head.ious) > 1 and losses.cascade == "loss":
            return (1.0, 0.5, 0.25)[min(t, 3) - 1]
        return 1.0 if box else 1.0 / max(self.config.ibpp.iterations, 1)


def _finite_images(values: Sequence[Tensor]) -> Tensor:
    """Return Tensor[B] bool, whether all values of an image are finite, from tensors of shape [B, …]."""
    return torch.stack([v.isfinite().flatten(1).all(1) for v in values]).all(0)
