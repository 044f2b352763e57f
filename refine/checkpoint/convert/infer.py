"""Inference of the architecture of a network from the names and shapes of its weights."""

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

_RESNETS: dict[tuple[tuple[int, ...], int], str] = {
    ((2, 2, 2, 2), 1): "resnet18",
    ((3, 4, 6, 3), 1): "resnet50",
    ((3, 4, 23, 3), 1): "resnet101",
    ((3, 4, 23, 3), 32): "resnext101_32x8d",
    ((3, 4, 23, 3), 64): "resnext101_64x4d",
}


def infer_config(weights: Weights) -> ModelConfig:
    """Infer the config of a Panoptic-FPN or Mask R-CNN from its weights.

    Args:
        weights: arrays by refine's names (see `rename`). Absent parts keep their defaults.

    Returns:
        Config with T = 0 and random weights; properties that weights do not determine (channel order, pixel
        statistics, position of the stride in bottlenecks) keep their defaults.

    Raises:
        RefineError: the architecture is not supported, or a weight that determines it is missing.
    """
    weights = _Checked(weights)
    config = ModelConfig(
        backbone=_backbone(weights),
        rpn=RPNConfig(post_nms_top_n=(1000, 1000)),
        box_head=_box_head(weights),
        mask_head=_mask_head(weights),
        semantic_head=_semantic_head(weights),
        ibpp=IBPPConfig(iterations=0),
    )
    if "fpn.levels.inner_blocks.0.0.weight" in weights:
        config.fpn_channels = weights.shape("fpn.levels.inner_blocks.0.0.weight", 4)[0]
        config.fpn_norm = _norm(weights, "fpn.levels.inner_blocks.0.1")
    config.rpn.num_convs = 1 + _count(weights, r"rpn\.further\.(\d+)\..+")
    return config


class _Checked(dict[str, np.ndarray]):
    """Weights by name that raise RefineError for a missing or malformed weight."""

    def shape(self, name: str, ndim: int) -> tuple[int, ...]:
        """Return the shape of a weight that must have `ndim` non-empty axes."""
        if name not in self:
            raise RefineError(f"weights: {name} is missing, so the architecture is unknown; give a complete file")
        shape = self[name].shape
        if len(shape) != ndim or 0 in shape:
            raise RefineError(f"weights: {name} has the shape {shape}, expected {ndim} axes; give a complete file")
        return shape


def _backbone(weights: _Checked) -> BackboneConfig:
    depths = tuple(_count(weights, rf"backbone\.layer{n}\.(\d+)\..+") for n in range(1, 5))
    middle = weights.shape("backbone.layer1.0.conv2.weight", 4)
    wide = "backbone.layer1.0.conv3.weight" in weights
    groups = middle[0] // middle[1]
    name = _RESNETS.get((depths, groups))
    if name == "resnet50" and not wide:
        name = "resnet34"
    if name is None or wide == (name in ("resnet18", "resnet34")):
        raise RefineError(f"backbone: {depths} blocks of {groups} groups per stage; known: {list(_RESNETS)}")
    deformable = [n + 1 for n in (2, 3, 4) if f"backbone.layer{n}.0.conv2.offset.weight" in weights]
    modulated = bool(deformable) and (
        weights.shape(f"backbone.layer{deformable[0] - 1}.0.conv2.offset.weight", 4)[0] == 27
    )
    norm = _norm(weights, "backbone.bn1")
    return BackboneConfig(
        name=name,
        weights=None,
        norm="frozen_bn" if norm == "bn" else norm,
        deform_stages=deformable,
        modulated=modulated,
        stem_width=weights.shape("backbone.conv1.weight", 4)[0],
        width_per_group=middle[1] if wide else None,
        res2_channels=weights.shape("backbone.layer1.0.conv3.weight", 4)[0] if wide else 4 * middle[0],
    )


def _box_head(weights: _Checked) -> BoxHeadConfig:
    stage = "box_heads.stages.0"
    if f"{stage}.classifier.weight" not in weights:
        return BoxHeadConfig()
    stages = _count(weights, r"box_heads\.stages\.(\d)\..+")
    num_convs = _count(weights, rf"{re.escape(stage)}\.convs\.(\d)\..+")
    num_fcs = (_count(weights, rf"{re.escape(stage)}\.fcs\.(\d)\..+") + 1) // 2  # ReLUs lie between
    if stages not in (1, 3) or num_fcs == 0:
        raise RefineError(
            f"box head: expected 1 or 3 stages with fully connected layers, got {stages} stages, {num_fcs} layers"
        )
    default = BoxHeadConfig()
    first = f"{stage}.convs.0.0.weight" if num_convs else "fpn.levels.layer_blocks.0.0.weight"
    channels = weights.shape(first, 4)[0]
    fc = weights.shape(f"{stage}.fcs.0.weight", 2)
    return BoxHeadConfig(
        ious=[0.5, 0.6, 0.7][:stages],
        num_convs=num_convs,
        conv_channels=channels if num_convs else default.conv_channels,
        num_fcs=num_fcs,
        fc_channels=fc[0],
        norm=_norm(weights, f"{stage}.convs.0.1") if num_convs else default.norm,
        class_agnostic=weights.shape(f"{stage}.regressor.weight", 2)[0] == 4,
        pool_size=isqrt(fc[1] // channels),
    )


def _mask_head(weights: _Checked) -> MaskHeadConfig:
    head = "ibpp.mask_heads.0"
    if f"{head}.predictor.weight" not in weights:
        return MaskHeadConfig()
    return MaskHeadConfig(
        num_convs=1 + _count(weights, rf"{re.escape(head)}\.convs\.(\d)\..+"),
        channels=weights.shape(f"{head}.from_features.weight", 4)[0],
        norm=_norm(weights, f"{head}.norm"),
    )


def _semantic_head(weights: _Checked) -> SemanticHeadConfig:
    if "semantic_head.predictor.weight" not in weights:
        return SemanticHeadConfig(classes="stuff")
    return SemanticHeadConfig(
        channels=weights.shape("semantic_head.predictor.weight", 4)[1],
        norm=_norm(weights, "semantic_head.levels.0.0.1"),
        classes="stuff",
    )


def _norm(weights: Weights, layer: str) -> Norm:
    if f"{layer}.running_mean" in weights or f"{layer}.running_var" in weights:
        return "bn"
    return "gn" if f"{layer}.weight" in weights or f"{layer}.bias" in weights else "none"


def _count(weights: Weights, pattern: str) -> int:
    """Return one more than the largest number in the pattern's group over all names; 0 if none matches."""
    return 1 + max((int(m[1]) for name in weights if (m := re.fullmatch(pattern, name))), default=-1)
