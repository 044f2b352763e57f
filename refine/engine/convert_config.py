"""Reading a network's architecture off the names and shapes of its weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isqrt

import numpy as np

from refine.errors import RefineError
from refine.modeling.config import (
    BackboneConfig,
    BoxHeadConfig,
    IBPPConfig,
    MaskHeadConfig,
    ModelConfig,
    Norm,
    RPNConfig,
    SemanticHeadConfig,
)

Weights = Mapping[str, np.ndarray]

_RESNETS = {
    ((2, 2, 2, 2), 1): "resnet18",
    ((3, 4, 6, 3), 1): "resnet50",
    ((3, 4, 23, 3), 1): "resnet101",
    ((3, 4, 23, 3), 32): "resnext101_32x8d",
    ((3, 4, 23, 3), 64): "resnext101_64x4d",
}


def infer_config(weights: Weights) -> ModelConfig:
    """The configuration of Panoptic-FPN or Mask R-CNN whose weights these are.

    Args:
        weights: in our names (`rename`). Parts that are absent keep their defaults.

    Returns:
        A config with T = 0 and random weights; what weights cannot tell (channel order, pixel statistics,
        where bottlenecks stride) is the defaults'.

    Raises:
        RefineError: an architecture that we do not have.
    """
    config = ModelConfig(
        backbone=_backbone(weights),
        rpn=RPNConfig(post_nms_top_n=(1000, 1000)),
        box_head=_box_head(weights),
        mask_head=_mask_head(weights),
        semantic_head=_semantic_head(weights),
        ibpp=IBPPConfig(iterations=0),
    )
    if "fpn.levels.inner_blocks.0.0.weight" in weights:
        config.fpn_channels = weights["fpn.levels.inner_blocks.0.0.weight"].shape[0]
        config.fpn_norm = _norm(weights, "fpn.levels.inner_blocks.0.1")
    if "rpn.objectness.weight" in weights:
        anchors = weights["rpn.objectness.weight"].shape[0]
        if anchors != 3:
            raise RefineError(f"rpn: {anchors} anchors per cell; only one size and three ratios are known")
    return config


def _backbone(weights: Weights) -> BackboneConfig:
    depths = tuple(_count(weights, rf"backbone\.layer{n}\.(\d+)\.conv1\.weight") for n in range(1, 5))
    middle = weights["backbone.layer1.0.conv2.weight"]
    wide = "backbone.layer1.0.conv3.weight" in weights
    groups = middle.shape[0] // middle.shape[1]
    name = _RESNETS.get((depths, groups))
    if name == "resnet50" and not wide:
        name = "resnet34"
    if name is None or wide == (name in ("resnet18", "resnet34")):
        raise RefineError(f"backbone: {depths} blocks of {groups} groups per stage; known: {list(_RESNETS)}")
    deformable = [n + 1 for n in (2, 3, 4) if f"backbone.layer{n}.0.conv2.offset.weight" in weights]
    modulated = bool(deformable) and (
        weights[f"backbone.layer{deformable[0] - 1}.0.conv2.offset.weight"].shape[0] == 27
    )
    norm = _norm(weights, "backbone.bn1")
    return BackboneConfig(
        name=name,
        weights=None,
        norm="frozen_bn" if norm == "bn" else norm,
        deform_stages=deformable,
        modulated=modulated,
        stem_width=weights["backbone.conv1.weight"].shape[0],
        width_per_group=middle.shape[1] if wide else None,
        res2_channels=weights["backbone.layer1.0.conv3.weight"].shape[0] if wide else 4 * middle.shape[0],
    )


def _box_head(weights: Weights) -> BoxHeadConfig:
    stage = "box_heads.stages.0"
    if f"{stage}.classifier.weight" not in weights:
        return BoxHeadConfig()
    stages = _count(weights, r"box_heads\.stages\.(\d)\.classifier\.weight")
    num_convs = _count(weights, rf"{re.escape(stage)}\.convs\.(\d)\.0\.weight")
    num_fcs = _count(weights, rf"{re.escape(stage)}\.fcs\.(\d)\.weight")
    if stages not in (1, 3) or num_fcs == 0:
        raise RefineError(
            f"box head: {stages} stages, {num_fcs} fully connected layers; known are 1 or 3, and 1 up"
        )
    default = BoxHeadConfig()
    channels = weights["rpn.conv.weight"].shape[0] if "rpn.conv.weight" in weights else 256
    if num_convs:
        channels = weights[f"{stage}.convs.0.0.weight"].shape[0]
    fc = weights[f"{stage}.fcs.0.weight"]
    return BoxHeadConfig(
        ious=[0.5, 0.6, 0.7][:stages],
        num_convs=num_convs,
        conv_channels=channels if num_convs else default.conv_channels,
        num_fcs=num_fcs,
        fc_channels=fc.shape[0],
        norm=_norm(weights, f"{stage}.convs.0.1") if num_convs else default.norm,
        class_agnostic=weights[f"{stage}.regressor.weight"].shape[0] == 4,
        pool_size=isqrt(fc.shape[1] // channels),
    )


def _mask_head(weights: Weights) -> MaskHeadConfig:
    head = "ibpp.mask_heads.0"
    if f"{head}.predictor.weight" not in weights:
        return MaskHeadConfig()
    return MaskHeadConfig(
        num_convs=1 + _count(weights, rf"{re.escape(head)}\.convs\.(\d)\.0\.weight"),
        channels=weights[f"{head}.from_features.weight"].shape[0],
        norm=_norm(weights, f"{head}.norm"),
    )


def _semantic_head(weights: Weights) -> SemanticHeadConfig:
    if "semantic_head.predictor.weight" not in weights:
        return SemanticHeadConfig()
    return SemanticHeadConfig(
        channels=weights["semantic_head.predictor.weight"].shape[1],
        norm=_norm(weights, "semantic_head.levels.0.0.1"),
        classes="stuff",
    )


def _norm(weights: Weights, layer: str) -> Norm:
    if f"{layer}.running_mean" in weights:
        return "bn"
    return "gn" if f"{layer}.weight" in weights else "none"


def _count(weights: Weights, pattern: str) -> int:
    """How many different numbers stand in the pattern's group."""
    return len({m[1] for name in weights if (m := re.fullmatch(pattern, name))})
