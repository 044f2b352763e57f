"""Configuration of a network, read from YAML and stored in every checkpoint.

This module does not import torch, so that the command line parses and prints configs without delay. Marks in
brackets name the source of a default: [P] the paper, [BCC] the code of BCC-Net, by the paper's first author and
apparently its predecessor, [d2] detectron2, [IMP] Instance Mask Projection (Fu et al. 2019), [C] our choice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from refine.bounds import bounded

Norm = Literal["gn", "frozen_bn", "sync_bn", "bn", "none"]
"""GroupNorm (32 groups), frozen, synchronised or plain BatchNorm, or no norm."""

Route = Literal["f_sem", "p_sem", "canvas"]
"""Inputs that one branch receives from the other: semantic features, semantic predictions, painted masks."""


@dataclass
class BackboneConfig:
    """Feature extractor with outputs at strides 4, 8, 16 and 32.

    Attributes:
        name: torchvision's `resnet18|34|50|101`, `resnext101_32x8d|64x4d`, or `timm/NAME` for any timm model that
            supports `features_only`.
        weights: None (random), "imagenet" (published for this architecture and norm), or a weight file.
        norm: norm layers of a ResNet; timm models keep their own, but "frozen_bn" freezes their statistics.
        norm_eps: value added to the variance by a ResNet's norms; 0 in torchvision's first Mask R-CNN.
        frozen_stages: number of frozen stages, counted from the stem (2 = stem and res2 [d2]).
        deform_stages: residual stages with deformable 3×3 convolutions, a subset of 3, 4, 5.
        modulated: whether deformable convolutions have a mask (DCNv2).
        stride_in_1x1: whether the stride of a bottleneck is in its first 1×1 convolution (Caffe/MSRA weights)
            instead of its 3×3 convolution.
        stem_width: number of channels of the first convolution.
        width_per_group: channels per group of a bottleneck's 3×3 convolution in res2 (64 in a plain ResNet).
        res2_channels: number of output channels of res2, doubled in each later stage.
    """

    name: str = "resnet50"
    weights: str | None = "imagenet"
    norm: Norm = "gn"
    norm_eps: float = bounded(1e-5, least=0)
    frozen_stages: int = bounded(2, least=0, most=5)
    deform_stages: list[int] = bounded([], least=3, most=5)
    modulated: bool = False
    stride_in_1x1: bool = False
    stem_width: int = bounded(64, least=1, most=16384)
    width_per_group: int | None = bounded(None, least=1, most=16384)
    res2_channels: int = bounded(256, least=4, most=16384)


@dataclass
class RPNConfig:
    """Region proposals from P2..P6.

    Attributes:
        anchor_sizes: square roots of the anchor areas in pixels, one per level P2..P6 [P].
        aspect_ratios: height divided by width.
        torchvision_anchors: whether corners are rounded to whole pixels and the spacing of the centres is the size
            of the padded image divided by that of the map, rounded down (on P6 often less than 64 pixels).
            Otherwise, as in detectron2, nothing is rounded and the spacing is the stride.
        num_convs: number of 3×3 convolutions before the predictions; 2 in torchvision's second Mask R-CNN.
        pre_nms_top_n: maximum number of proposals per level before NMS (training, test).
        post_nms_top_n: maximum number of proposals per image after NMS (training, test) [BCC].
        nms: IoU threshold of NMS.
        positive_iou, negative_iou: anchors at or above / below are positive / negative.
        samples: number of anchors per image in the loss.
        positive_fraction: maximum fraction of positive samples.
    """

    anchor_sizes: list[float] = bounded([32.0, 64.0, 128.0, 256.0, 512.0], above=0, filled=True)
    aspect_ratios: list[float] = bounded([0.5, 1.0, 2.0], above=0, filled=True)
    torchvision_anchors: bool = False
    num_convs: int = bounded(1, least=1, most=100)
    pre_nms_top_n: tuple[int, int] = bounded((2000, 1000), least=1)
    post_nms_top_n: tuple[int, int] = bounded((2000, 1000), least=1)
    nms: float = bounded(0.7, least=0, most=1)
    positive_iou: float = bounded(0.7, least=0, most=1)
    negative_iou: float = bounded(0.3, least=0, most=1)
    samples: int = bounded(256, least=1)
    positive_fraction: float = bounded(0.5, least=0, most=1)


@dataclass
class BoxHeadConfig:
    """Classification and regression of boxes; more than one IoU makes it a cascade.

    Attributes:
        ious: minimum IoU of positive proposals, one per stage: [0.5] or [0.5, 0.6, 0.7] [P].
        num_convs, conv_channels: number and width of 3×3 convolutions before the fully connected layers [P].
        num_fcs, fc_channels: number and width of fully connected layers.
        norm: norm of the convolutions.
        class_agnostic: whether one regression serves all classes (required for cascades).
        pool_size: side of the RoIAlign output in bins.
        samples: number of proposals per image in the loss.
        positive_fraction: maximum fraction of positive samples.
        score_threshold: minimum score of detections: .05 for R50, .001 for heavy models [BCC].
        nms: IoU threshold of NMS per class.
        max_detections: maximum number of detections per image.
    """

    ious: list[float] = bounded([0.5], least=0, most=1, filled=True)
    num_convs: int = bounded(4, least=0, most=100)
    conv_channels: int = bounded(256, least=1, most=16384)
    num_fcs: int = bounded(1, least=0, most=100)
    fc_channels: int = bounded(1024, least=1, most=16384)
    norm: Norm = "gn"
    class_agnostic: bool = False
    pool_size: int = bounded(7, least=1, most=256)
    samples: int = bounded(512, least=1)
    positive_fraction: float = bounded(0.25, least=0, most=1)
    score_threshold: float = bounded(0.05, least=0, most=1)
    nms: float = bounded(0.5, least=0, most=1)
    max_detections: int = bounded(100, least=1)


@dataclass
class DetectorConfig:
    """NanoDet-G, a frozen detector of COCO's 80 things, instead of region proposals and box heads.

    Attributes:
        weights: safetensors file of initial weights (of `examples/nanodet.py`); None if a checkpoint holds them.
        labels: thing class of the model for each of the 80 classes, in the order of COCO's ids, -1 for none; empty
            if the model's things are COCO's 80.
        features: whether its maps, pretrained on all of COCO, are concatenated to the backbone's before the FPN.
        scale: factor by which the model's input is resized for the detector.
        score_threshold: minimum score of detections.
        nms: IoU threshold of NMS per class of the model.
        max_detections: maximum number of detections per image.
        positive_iou: minimum IoU with a true box of its class at which a detection is used to train the mask head.
    """

    weights: str | None = None
    labels: list[int] = field(default_factory=list)
    features: bool = False
    scale: float = 1.0
    score_threshold: float = 0.05
    nms: float = 0.6
    max_detections: int = 100
    positive_iou: float = 0.5


@dataclass
class MaskHeadConfig:
    """Mask head, from 14×14 features of an instance to its mask.

    Attributes:
        num_convs, channels: number and width of 3×3 convolutions before the deconvolution.
        norm: norm of the convolutions.
        pool_size: side of the RoIAlign output in bins; masks are twice as large (14 → 28) [P].
        semantic_weight: weight of P_sem^(T) in the masks at test; 0 as in the paper. See `add_semantics`.
    """

    num_convs: int = bounded(4, least=0, most=100)
    channels: int = bounded(256, least=1, most=16384)
    norm: Norm = "gn"
    pool_size: int = bounded(14, least=1, most=112)
    semantic_weight: float = bounded(0.0, least=0, most=10)


@dataclass
class SemanticHeadConfig:
    """Semantic head, which computes F_sem and the first prediction P_sem^(0) at stride 4.

    Attributes:
        channels: number of channels of F_sem; equal to the FPN's with the paper's exchange, which sums f_ins and
            f_sem [P].
        norm: norm of the convolutions. "gn" has at most 32 groups, so that it normalises each of 32 or fewer
            channels alone, which cost 11 PQ of stuff on small scenes (RESULTS.md); "bn" did not.
        classes: "all" predicts every thing and stuff class [P]; "stuff" predicts one merged thing class
            (channel 0) and the stuff classes, as in the original Panoptic-FPN [d2].
    """

    channels: int = bounded(256, least=1, most=16384)
    norm: Norm = "gn"
    classes: Literal["all", "stuff"] = "all"


@dataclass
class IBPPConfig:
    """Iterative bi-directional prediction projection.

    Attributes:
        iterations: number T of iterations; 0 is Panoptic-FPN.
        exchange: inputs of the refining heads. "paper" sums f_ins and f_sem, and uses p_sem as logits and the
            canvas as probabilities [P; BCC]. "balanced" has separate convolutions for f_sem and p_sem, which start
            at zero so that H̃_ins starts as the H_ins of T = 0; it uses p_sem and the canvas as probabilities × √C,
            the scale of a vector of C features, and adds the canvas in H̃_sem after the norm of F_sem [C].
        routes: inputs of the refining heads in addition to f_ins and F_sem: f_sem and p_sem in H̃_ins, the canvas
            in H̃_sem; all of them in the paper.
        shared: whether all iterations share one pair of heads.
        sem_convs, sem_channels: number and width of 3×3 convolutions of the refining semantic head [C].
        flatten: combination of overlapping instances on the canvas: "max" [IMP] or "sum" (clipped at 1).
        detach: whether to detach p_sem and the canvas (an ablation; not in the paper).
        mask_flow: whether H̃_ins^t, t > 1, also takes the last features of H̃_ins^(t-1) through a 1×1 convolution
            [HTC, BCC]; not possible in a cascade, whose boxes change.
        residual: whether H̃_sem predicts the residual P_sem^(t) - P_sem^(t-1), which is zero initially, so that
            training can continue from T = 0 without a jump. In the paper, H̃_sem predicts P_sem^(t) [C].
        score_threshold: minimum score of detections that are painted on the canvas at test.
    """

    iterations: int = bounded(3, least=0, most=100)
    exchange: Literal["paper", "balanced"] = "paper"
    routes: list[Route] = field(default_factory=lambda: ["f_sem", "p_sem", "canvas"])
    shared: bool = False
    sem_convs: int = bounded(2, least=0, most=100)
    sem_channels: int = bounded(128, least=1, most=16384)
    flatten: Literal["max", "sum"] = "max"
    detach: bool = False
    mask_flow: bool = False
    residual: bool = False
    score_threshold: float = bounded(0.05, least=0, most=1)


@dataclass
class OcclusionConfig:
    """Pairwise occlusion head.

    Attributes:
        cues: inputs for each instance: mask, features f_ins + f_sem (f_ins if F_sem has another width), class.
        conv_channels, fc_channels: widths of the convolutions and the fully connected layers.
        pair_overlap: minimum overlap ρ of the training pairs, as a fraction of either mask.
        false_pairs: whether to train also on pairs of a true detection, in front, and a false or duplicate one [C].
    """

    cues: list[Literal["mask", "feature", "label"]] = field(default_factory=lambda: ["mask", "feature", "label"])
    conv_channels: int = bounded(512, least=1, most=16384)
    fc_channels: int = bounded(1024, least=1, most=16384)
    pair_overlap: float = bounded(0.2, least=0, most=1)
    false_pairs: bool = False


@dataclass
class LossConfig:
    """Weights of the losses.

    Attributes:
        semantic_last, semantic_other: weights of the cross-entropy of P_sem^(T), and of P_sem^(t) for t < T
            [C; .5 from Panoptic-FPN].
        instance: box and mask weights a_t per stage, of which the last applies to all later stages; empty for 1/T
            for masks and 1 for boxes, or for the weights that `cascade` sets.
        mask: factor of the mask losses.
        cascade: weighting of the stages of a cascade. "loss" weights the boxes and masks of the stages by 1, .5 and
            .25 [BCC]. "gradient" weights boxes by 1 and masks by 1/T, and divides the gradient from the boxes to
            the FPN by the number of stages [d2].
    """

    semantic_last: float = bounded(0.5, least=0)
    semantic_other: float = bounded(0.2, least=0)
    instance: list[float] = bounded([], least=0)
    mask: float = bounded(1.0, least=0)
    cascade: Literal["loss", "gradient"] = "loss"


@dataclass
class ModelConfig:
    """Configuration of one network.

    Attributes:
        backbone, rpn, box_head, mask_head, semantic_head, ibpp, losses: configuration of the parts.
        occlusion: pairwise occlusion head, or None.
        detector: detector that replaces `rpn` and `box_head`, which then are not built, or None.
        ranking: whether there is a spatial ranking module (SRM).
        fpn_channels, fpn_norm: channels and norm of the FPN levels P2..P6.
        roi_sampling: samples per RoIAlign bin and axis; 0 adapts them to the size of the box [d2].
        roi_aligned: whether RoIAlign's samples are shifted by half a pixel to align with pixel centres [d2];
            not in torchvision's detectors.
        roi_canonical_size: side in pixels of a box whose features come from P4; boxes of half this side use P3, and
            so on [FPN, for a short side of 800].
        pixel_mean, pixel_std: normalisation on a 0-255 scale, in the order of `channels`.
        channels: channel order that the first convolution expects.
        divisor: divisor of padded heights and widths.
        channels_last: whether to use the channels-last memory format for faster convolutions. PyTorch's GroupNorm
            on a CPU is less exact with it: errors are up to 7e-4 if a mean is five standard deviations, 1e-6
            without.
    """

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    rpn: RPNConfig = field(default_factory=RPNConfig)
    box_head: BoxHeadConfig = field(default_factory=BoxHeadConfig)
    mask_head: MaskHeadConfig = field(default_factory=MaskHeadConfig)
    semantic_head: SemanticHeadConfig = field(default_factory=SemanticHeadConfig)
    ibpp: IBPPConfig = field(default_factory=IBPPConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    occlusion: OcclusionConfig | None = None
    detector: DetectorConfig | None = None
    ranking: bool = False
    fpn_channels: int = bounded(256, least=1, most=16384)
    fpn_norm: Norm = "gn"
    roi_sampling: int = bounded(2, least=0, most=64)
    roi_aligned: bool = True
    roi_canonical_size: float = bounded(224.0, above=0)
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    pixel_std: tuple[float, float, float] = bounded((58.395, 57.12, 57.375), above=0)
    channels: Literal["RGB", "BGR"] = "RGB"
    divisor: int = bounded(32, least=1, most=4096)
    channels_last: bool = True
