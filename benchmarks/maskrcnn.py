"""torchvision's Mask R-CNN with the widths and the backbone of one of our configs: a baseline for `nuclei.py`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from refine.formats.adapters import from_torchvision
from refine.fusion import FusionConfig, fuse
from refine.modeling.backbones import Backbone, build_backbone
from refine.modeling.norms import make_norm
from refine.structures import Categories, PanopticResult, Targets
from refine.training.config import RunConfig


class PyramidBackbone(nn.Module):
    """What torchvision's `BackboneWithFPN` is, over one of our backbones."""

    def __init__(self, backbone: Backbone, channels: int, norm: partial[nn.Module] | None) -> None:
        super().__init__()
        self.body, self.out_channels = backbone, channels
        self.fpn = FeaturePyramidNetwork(backbone.channels, channels, LastLevelMaxPool(), norm_layer=norm)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Tensor[B, 3, H, W], normalised -> maps at strides 4 to 64, "0" to "3" and "pool"."""
        return self.fpn(OrderedDict((str(n), feature) for n, feature in enumerate(self.body(x))))


class MaskRCNN(nn.Module):
    """torchvision's detector with `image_batch` and `loss` as `PanopticModel` has them, so that it trains alike.

    Anchors, widths, norms, RoIAlign, samples and thresholds are the config's; everything else is torchvision's.

    Args:
        config: of the run.
        num_things: K.
    """

    def __init__(self, config: RunConfig, num_things: int) -> None:
        super().__init__()
        model = config.model
        rpn, box, mask, channels = model.rpn, model.box_head, model.mask_head, model.fpn_channels
        align = partial(MultiScaleRoIAlign, ["0", "1", "2", "3"], sampling_ratio=model.roi_sampling)
        norms = [None if n == "none" else partial(make_norm, n) for n in (model.fpn_norm, mask.norm)]
        self.detector = TorchvisionMaskRCNN(
            PyramidBackbone(build_backbone(model.backbone), channels, norms[0]),
            min_size=config.eval.short,
            max_size=config.eval.long,
            image_mean=[value / 255 for value in model.pixel_mean],
            image_std=[value / 255 for value in model.pixel_std],
            rpn_anchor_generator=AnchorGenerator(
                tuple((round(size),) for size in rpn.anchor_sizes),
                (tuple(rpn.aspect_ratios),) * len(rpn.anchor_sizes),
            ),
            rpn_pre_nms_top_n_train=rpn.pre_nms_top_n[0],
            rpn_pre_nms_top_n_test=rpn.pre_nms_top_n[1],
            rpn_post_nms_top_n_train=rpn.post_nms_top_n[0],
            rpn_post_nms_top_n_test=rpn.post_nms_top_n[1],
            rpn_batch_size_per_image=rpn.samples,
            box_roi_pool=align(output_size=box.pool_size),
            box_head=TwoMLPHead(channels * box.pool_size**2, box.fc_channels),
            box_predictor=FastRCNNPredictor(box.fc_channels, num_things + 1),
            box_score_thresh=box.score_threshold,
            box_nms_thresh=box.nms,
            box_detections_per_img=box.max_detections,
            box_batch_size_per_image=box.samples,
            mask_roi_pool=align(output_size=mask.pool_size),
            mask_head=MaskRCNNHeads(channels, [mask.channels] * mask.num_convs, 1, norms[1]),
            mask_predictor=MaskRCNNPredictor(mask.channels, mask.channels, num_things + 1),
            _skip_resize=True,  # at training: the crops have their size already
        )
        if model.channels_last:
            self.to(memory_format=torch.channels_last)

    @property
    def backbone(self) -> Backbone:
        return self.detector.backbone.body

    def image_batch(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Tensor[3, h, w] uint8 RGB each -> the same as float32, 0-1, on the model's device."""
        device = next(self.parameters()).device
        return [image.to(device).float() / 255 for image in images]

    def loss(self, images: list[Tensor], targets: Sequence[Targets]) -> dict[str, Tensor]:
        """torchvision's five losses; crowd regions do not exist for it."""
        return self.detector(
            images,
            [
                {
                    "boxes": t.boxes[~t.iscrowd],
                    "labels": t.labels[~t.iscrowd] + 1,
                    "masks": t.masks[~t.iscrowd].byte(),
                }
                for t in targets
            ],
        )

    @torch.inference_mode()
    def panoptic(self, image: Tensor, categories: Categories, fusion: FusionConfig) -> PanopticResult:
        """Fuse the detections heuristically over the first stuff class: Tensor[3, H, W] uint8 RGB -> result."""
        (output,) = self.detector(self.image_batch([image]))
        things = [category.id for category in categories if category.isthing]
        instances = from_torchvision(output, categories, [0, *things])
        stuff = torch.full(image.shape[1:], categories.num_things, device=instances.boxes.device)
        return fuse(instances, stuff, categories=categories, config=fusion)
