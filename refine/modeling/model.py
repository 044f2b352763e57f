"""REFINE's network, from images to losses, or to instances and semantic logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from refine.bounds import check_bounds
from refine.errors import RefineError
from refine.modeling.backbones import build_backbone
from refine.modeling.box_head import BoxHeads
from refine.modeling.config import ModelConfig
from refine.modeling.detector import Detector
from refine.modeling.fpn import FPN
from refine.modeling.ibpp import IBPP
from refine.modeling.losses import compute_losses
from refine.modeling.mask_head import MaskHead
from refine.modeling.nanodet import NanoDetOutput
from refine.modeling.norms import over_valid_pixels
from refine.modeling.occlusion import OcclusionHead
from refine.modeling.output import NetworkOutput
from refine.modeling.ranking import SpatialRanking
from refine.modeling.rpn import RegionProposals
from refine.modeling.semantic_head import SemanticHead
from refine.modeling.spans import span
from refine.ops.roi import Sampling, to_rois
from refine.ops.strides import plain_strides
from refine.structures import VOID, ImageBatch, Instances, Targets


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
        RefineError: the parts do not fit together, such as T > 0 with a semantic head that merges all things.
    """

    semantic_classes: Tensor
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: ModelConfig, num_things: int, num_classes: int) -> None:
        super().__init__()
        check_bounds(config, "model")
        merged = config.semantic_head.classes == "stuff"
        if config.mask_head.semantic_weight and (merged or num_classes < 2):
            raise RefineError(
                "mask_head.semantic_weight needs semantic_head.classes 'all' and at least two classes; set it to 0"
            )
        if config.ibpp.iterations:
            if config.ibpp.exchange == "paper" and config.semantic_head.channels != config.fpn_channels:
                raise RefineError(
                    f"semantic_head.channels is {config.semantic_head.channels}, fpn_channels "
                    f"{config.fpn_channels}: IBPP sums f_ins and f_sem; make them equal, or set ibpp.exchange to "
                    "'balanced'"
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
            for head in self.ibpp.mask_heads.children():
                assert isinstance(head, MaskHead)
                weight = head.predictor.weight  # its gradient, gathered by class, has the strides of a plain tensor
                weight.data = plain_strides(weight.data)

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
        """Compute the losses of all parts that are trained; see `compute_losses`."""
        return compute_losses(self, images, targets)

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
        return self.detect(images, seen, pyramid, features, min_score)

    @torch.no_grad()
    def detect(
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
                detections, finite = self.box_heads.predict(pyramid[:4], proposals, images.sizes, min_score)
            finite = finite & _finite_images([*found.objectness, *found.deltas])
        outputs = self.segment(images, pyramid, features, detections)
        return [replace(output, boxes_finite=good) for output, good in zip(outputs, finite, strict=True)]

    @torch.no_grad()
    def segment(
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


def _finite_images(values: Sequence[Tensor]) -> Tensor:
    """Return Tensor[B] bool, whether all values of an image are finite, from tensors of shape [B, …]."""
    return torch.stack([v.isfinite().flatten(1).all(1) for v in values]).all(0)
