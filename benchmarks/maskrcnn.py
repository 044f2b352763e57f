"""torchvision's Mask R-CNN with the widths and backbone of a refine config: a baseline for `nuclei.py`."""

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
    """Equivalent of torchvision's `BackboneWithFPN` for a refine backbone."""

    def __init__(self, backbone: Backbone, channels: int, norm: partial[nn.Module] | None) -> None:
        super().__init__()
        self.body, self.out_channels = backbone, channels
        self.fpn = FeaturePyramidNetwork(backbone.channels, channels, LastLevelMaxPool(), norm_layer=norm)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Compute the FPN maps "0" to "3" and "pool" at strides 4 to 64 of a normalised Tensor[B, 3, H, W]."""
        return self.fpn(OrderedDict((str(n), feature) for n, feature in enumerate(self.body(x))))


class MaskRCNN(nn.Module):
    """torchvision's detector with the methods `image_batch` and `loss` of `PanopticModel`, for the same training.

    Anchors, widths, norms, RoIAlign, samples and thresholds are from the config, everything else from torchvision.

    Args:
        config: config of the run.
        num_things: number K of thing classes.
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
            _skip_resize=True,  # in training, where crops have their final size
        )
        if model.channels_last:
            self.to(memory_format=torch.channels_last)

    @property
    def backbone(self) -> Backbone:
        return self.detector.backbone.body

    def image_batch(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Convert images, each Tensor[3, h, w] uint8 RGB, to float32, 0-1, on the model's device."""
        device = next(self.parameters()).device
        return [image.to(device).float() / 255 for image in images]

    def loss(self, images: list[Tensor], targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Return torchvision's five losses; crowd regions are ignored."""
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
        """Predict an image, Tensor[3, H, W] uint8 RGB: fuse detections heuristically over the first stuff class."""
        (output,) = self.detector(self.image_batch([image]))
        things = [category.id for category in categories if category.isthing]
        instances = from_torchvision(output, categories, [0, *things])
        stuff = torch.full(image.shape[1:], categories.num_things, device=instances.boxes.device)
        return fuse(instances, stuff, categories=categories, config=fusion)
