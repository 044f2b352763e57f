"""What a network is made of: one typed record, read from YAML, stored in every checkpoint.

Nothing here imports torch, so that the command line can parse and print configs at once.
Marks in brackets say where a default comes from: [P] the paper, [BCC] the code of BCC-Net, by the paper's first
author and apparently its predecessor, [d2] detectron2, [IMP] Instance Mask Projection (Fu et al. 2019), [C] our own
choice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from refine.bounds import bounded

Norm = Literal["gn", "frozen_bn", "sync_bn", "bn", "none"]
"""GroupNorm (32 groups), BatchNorm with fixed statistics, synchronised or plain BatchNorm, or no norm."""

Route = Literal["f_sem", "p_sem", "canvas"]
"""What one branch tells the other: semantic features, semantic predictions, painted masks."""


@dataclass
class BackboneConfig:
    """Feature extractor with outputs at strides 4, 8, 16 and 32.

    Attributes:
        name: torchvision's `resnet18|34|50|101`, `resnext101_32x8d|64x4d`, or `timm/NAME` for any timm
            model that has `features_only`.
        weights: None (random), "imagenet" (the published weights of that architecture and norm), or the
            path of a file of weights.
        norm: norm layers of a ResNet; timm models keep their own ("bn" or "frozen_bn" freezes statistics).
        norm_eps: added to the variance by a ResNet's norms; 0 in torchvision's first Mask R-CNN.
        frozen_stages: stages that are not trained, counted from the stem (2 = stem and res2 [d2]).
        deform_stages: residual stages whose 3×3 convolutions are deformable, of 3, 4, 5.
        modulated: deformable convolutions have a mask (DCNv2).
        stride_in_1x1: a bottleneck strides in its first 1×1 (Caffe/MSRA weights), not in its 3×3.
        stem_width: channels of the first convolution.
        width_per_group: channels per group of a bottleneck's 3×3 in res2 (64 in a plain ResNet).
        res2_channels: output channels of res2; later stages double it.
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
        anchor_sizes: square root of the anchor area in pixels, one per level P2..P6 [P].
        aspect_ratios: height over width.
        torchvision_anchors: corners are rounded to whole pixels, and the centres are as far apart as the padded
            image divided by the map, rounded down: on P6 often less than 64 pixels. Else, as in detectron2,
            nothing is rounded, and centres are a stride apart.
        num_convs: 3×3 convolutions before the predictions; 2 in torchvision's second Mask R-CNN.
        pre_nms_top_n: proposals kept per level before NMS (training, test).
        post_nms_top_n: proposals kept per image after NMS (training, test) [BCC].
        nms: IoU threshold.
        positive_iou, negative_iou: anchors at or above / below are positive / negative.
        samples: anchors in the loss per image.
        positive_fraction: at most this share of them positive.
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
        ious: a proposal is positive at or above; one stage each: [0.5] or [0.5, 0.6, 0.7] [P].
        num_convs, conv_channels: 3×3 convolutions before the fully connected layers (4conv1fc) [P].
        num_fcs, fc_channels: fully connected layers.
        norm: of the convolutions.
        class_agnostic: one regression for all classes (cascades).
        pool_size: RoIAlign output, in bins.
        samples: proposals in the loss per image.
        positive_fraction: at most this share of them positive.
        score_threshold: detections below are dropped: .05 for R50, .001 for heavy models [BCC].
        nms: IoU threshold per class.
        max_detections: per image.
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
    """NanoDet-G, a frozen detector of COCO's 80 things, in the place of region proposals and box heads.

    Attributes:
        weights: safetensors file to start from (`examples/nanodet.py` writes it); None where a checkpoint
            brings them.
        labels: thing class of the model for each of the 80, in the order of COCO's ids, -1 for none; empty:
            the model's things are COCO's 80.
        features: its maps, which have seen all of COCO, join those of the backbone in the pyramid.
        scale: the model's input is resized by it for the detector.
        score_threshold: detections below are dropped.
        nms: IoU threshold per class of the model.
        max_detections: per image.
        positive_iou: in training, a detection that overlaps a true box of its class by this learns its mask.
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
    """Mask of one instance from its 14×14 features.

    Attributes:
        num_convs, channels: 3×3 convolutions before the deconvolution.
        norm: of the convolutions.
        pool_size: RoIAlign output; masks are twice as fine (14 → 28) [P].
    """

    num_convs: int = bounded(4, least=0, most=100)
    channels: int = bounded(256, least=1, most=16384)
    norm: Norm = "gn"
    pool_size: int = bounded(14, least=1, most=112)


@dataclass
class SemanticHeadConfig:
    """Semantic features F_sem and the first prediction P_sem^(0), at stride 4.

    Attributes:
        channels: of F_sem; must equal the FPN's where T > 0, because f_ins + f_sem is a sum [P].
        norm: of the convolutions.
        classes: "all" predicts every thing and stuff class [P]; "stuff" predicts one merged thing class
            (channel 0) and the stuff classes, as the original Panoptic-FPN does [d2].
    """

    channels: int = bounded(256, least=1, most=16384)
    norm: Norm = "gn"
    classes: Literal["all", "stuff"] = "all"


@dataclass
class IBPPConfig:
    """Iterative bi-directional prediction projection.

    Attributes:
        iterations: T; 0 is Panoptic-FPN.
        exchange: how the refining heads take their inputs. "paper" sums f_ins + f_sem, and feeds p_sem as logits
            and the canvas as probabilities [P; BCC]. "balanced" gives f_sem and p_sem convolutions of their own
            that start at zero, so that H̃_ins starts as the H_ins of T = 0, feeds p_sem and the canvas as
            probabilities × √C, the scale of a vector of C features, and adds the canvas's part of H̃_sem after the
            norm of F_sem's [C].
        routes: which inputs the refining heads have besides f_ins and F_sem: f_sem and p_sem in H̃_ins, the canvas
            in H̃_sem; all of them in the paper.
        shared: one pair of heads for all iterations instead of one pair each.
        sem_convs, sem_channels: 3×3 convolutions of the refining semantic head and their width [C].
        flatten: how instances that overlap on the canvas combine: "max" [IMP] or "sum" (clipped at 1).
        detach: cut the gradient through p_sem and the canvas (an ablation; the paper keeps it).
        mask_flow: H̃_ins^t, t > 1, also takes the last features of H̃_ins^(t-1), by a 1×1 convolution [HTC, BCC];
            not in a cascade, whose boxes do not stay.
        residual: P_sem^(t) is P_sem^(t-1) plus what H̃_sem says, which is nothing at first, so that a network that
            goes on from T = 0 begins where that was. The paper's H̃_sem says P_sem^(t) anew [C].
        score_threshold: detections below are not painted on the canvas at test.
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
        cues: what it sees of each instance: its mask, its features f_ins + f_sem, its class.
        conv_channels, fc_channels: widths.
        pair_overlap: pairs count that overlap by this share of either mask (ρ).
    """

    cues: list[Literal["mask", "feature", "label"]] = field(default_factory=lambda: ["mask", "feature", "label"])
    conv_channels: int = bounded(512, least=1, most=16384)
    fc_channels: int = bounded(1024, least=1, most=16384)
    pair_overlap: float = bounded(0.2, least=0, most=1)


@dataclass
class LossConfig:
    """Weights of the losses.

    Attributes:
        semantic_last, semantic_other: CE of P_sem^(T) and of P_sem^(t), t < T [C; .5 from Panoptic-FPN].
        instance: box and mask weights a_t per stage, the last one for all that follow; empty: masks 1/T each,
            boxes 1; in a cascade as `cascade` says.
        mask: multiplies the mask losses.
        cascade: how the stages of a cascade share the pyramid. "loss": boxes and masks of the stages count 1, .5
            and .25 [BCC]. "gradient": boxes count 1 each, masks 1/T, and what flows from the boxes into the
            pyramid is divided by the number of stages [d2].
    """

    semantic_last: float = bounded(0.5, least=0)
    semantic_other: float = bounded(0.2, least=0)
    instance: list[float] = bounded([], least=0)
    mask: float = bounded(1.0, least=0)
    cascade: Literal["loss", "gradient"] = "loss"


@dataclass
class ModelConfig:
    """One network.

    Attributes:
        backbone, rpn, box_head, mask_head, semantic_head, ibpp, losses: its parts.
        occlusion: the pairwise head, or None without one.
        detector: gives boxes, scores and labels in the place of `rpn` and `box_head`, which then are not built;
            None without one.
        ranking: with a spatial ranking module (SRM).
        fpn_channels, fpn_norm: the pyramid P2..P6.
        roi_sampling: samples per RoIAlign bin and axis; 0 chooses by the box's size [d2].
        roi_aligned: RoIAlign's samples are shifted by half a pixel, so that they lie where pixels are [d2];
            torchvision's detectors do without.
        roi_canonical_size: side in pixels of a box whose features come from P4, half of it from P3 and so on
            [FPN, for a short side of 800].
        pixel_mean, pixel_std: 0-255, in the order of `channels`.
        channels: what the first convolution expects.
        divisor: padded heights and widths are multiples of it.
        channels_last: lay maps out pixel by pixel, for faster convolutions. PyTorch's GroupNorm on a CPU sums
            less exactly so: values are off by up to 7e-4 where a mean is five deviations, 1e-6 without.
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
