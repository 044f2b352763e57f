"""Mapping of weight names of detectron2, torchvision and Caffe2 to refine's names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from refine.errors import RefineError, counted
from refine.modeling.config import ModelConfig

Rule = tuple[str, Callable[[re.Match[str]], str]]
"""Pattern that must match the whole name, and function that returns refine's name."""


def _number(text: str, offset: int) -> int:
    return int(text) + offset


def _stage(text: str | None) -> str:
    """Return the stage number of a cascade, "1." -> "1"; a single head has no number and is "0"."""
    return (text or "0").rstrip(".")


_DETECTRON2: list[Rule] = [
    (
        r"backbone\.bottom_up\.stem\.conv1\.(norm\.)?(\w+)",
        lambda m: f"backbone.{'bn1' if m[1] else 'conv1'}.{m[2]}",
    ),
    (
        r"backbone\.bottom_up\.res(\d)\.(\d+)\.conv(\d)\.(norm\.)?(\w+)",
        lambda m: f"backbone.layer{_number(m[1], -1)}.{m[2]}.{'bn' if m[4] else 'conv'}{m[3]}.{m[5]}",
    ),
    (
        r"backbone\.bottom_up\.res(\d)\.(\d+)\.conv2_offset\.(\w+)",
        lambda m: f"backbone.layer{_number(m[1], -1)}.{m[2]}.conv2.offset.{m[3]}",
    ),
    (
        r"backbone\.bottom_up\.res(\d)\.(\d+)\.shortcut\.(norm\.)?(\w+)",
        lambda m: f"backbone.layer{_number(m[1], -1)}.{m[2]}.downsample.{1 if m[3] else 0}.{m[4]}",
    ),
    (
        r"backbone\.fpn_(lateral|output)(\d)\.(norm\.)?(\w+)",
        lambda m: (
            f"fpn.levels.{'inner' if m[1] == 'lateral' else 'layer'}_blocks.{_number(m[2], -2)}."
            f"{1 if m[3] else 0}.{m[4]}"
        ),
    ),
    (r"proposal_generator\.rpn_head\.conv\.(?:conv0\.)?(weight|bias)", lambda m: f"rpn.conv.{m[1]}"),
    (
        r"proposal_generator\.rpn_head\.conv\.conv(\d)\.(\w+)",
        lambda m: f"rpn.further.{_number(m[1], -1)}.{m[2]}",
    ),
    (r"proposal_generator\.rpn_head\.objectness_logits\.(\w+)", lambda m: f"rpn.objectness.{m[1]}"),
    (r"proposal_generator\.rpn_head\.anchor_deltas\.(\w+)", lambda m: f"rpn.deltas.{m[1]}"),
    (
        r"roi_heads\.box_head\.(\d\.)?conv(\d)\.(norm\.)?(\w+)",
        lambda m: f"box_heads.stages.{_stage(m[1])}.convs.{_number(m[2], -1)}.{1 if m[3] else 0}.{m[4]}",
    ),
    (
        r"roi_heads\.box_head\.(\d\.)?fc(\d)\.(\w+)",
        lambda m: f"box_heads.stages.{_stage(m[1])}.fcs.{2 * _number(m[2], -1)}.{m[3]}",
    ),
    (
        r"roi_heads\.box_predictor\.(\d\.)?cls_score\.(\w+)",
        lambda m: f"box_heads.stages.{_stage(m[1])}.classifier.{m[2]}",
    ),
    (
        r"roi_heads\.box_predictor\.(\d\.)?bbox_pred\.(\w+)",
        lambda m: f"box_heads.stages.{_stage(m[1])}.regressor.{m[2]}",
    ),
    (
        r"roi_heads\.mask_head\.mask_fcn1\.(norm\.)?(\w+)",
        lambda m: f"ibpp.mask_heads.0.{'norm' if m[1] else 'from_features'}.{m[2]}",
    ),
    (
        r"roi_heads\.mask_head\.mask_fcn(\d)\.(norm\.)?(\w+)",
        lambda m: f"ibpp.mask_heads.0.convs.{_number(m[1], -2)}.{1 if m[2] else 0}.{m[3]}",
    ),
    (r"roi_heads\.mask_head\.(deconv|predictor)\.(\w+)", lambda m: f"ibpp.mask_heads.0.{m[1]}.{m[2]}"),
    (
        # Convolutions and upsampling layers alternate.
        r"sem_seg_head\.p(\d)\.(\d)\.(norm\.)?(\w+)",
        lambda m: f"semantic_head.levels.{_number(m[1], -2)}.{int(m[2]) // 2}.{1 if m[3] else 0}.{m[4]}",
    ),
    (r"sem_seg_head\.predictor\.(\w+)", lambda m: f"semantic_head.predictor.{m[1]}"),
    (r"pixel_(mean|std)", lambda m: f"pixel_{m[1]}"),
]

_TORCHVISION: list[Rule] = [
    (r"backbone\.body\.(.+)", lambda m: f"backbone.{m[1]}"),
    (
        # Files written before torchvision 0.13 have no index of convolution and norm within a block.
        r"backbone\.fpn\.(inner|layer)_blocks\.(\d)\.(?:(\d)\.)?(\w+)",
        lambda m: f"fpn.levels.{m[1]}_blocks.{m[2]}.{m[3] or 0}.{m[4]}",
    ),
    (r"rpn\.head\.conv\.(?:0\.0\.)?(weight|bias)", lambda m: f"rpn.conv.{m[1]}"),
    (r"rpn\.head\.conv\.(\d)\.0\.(\w+)", lambda m: f"rpn.further.{_number(m[1], -1)}.{m[2]}"),
    (r"rpn\.head\.cls_logits\.(\w+)", lambda m: f"rpn.objectness.{m[1]}"),
    (r"rpn\.head\.bbox_pred\.(\w+)", lambda m: f"rpn.deltas.{m[1]}"),
    (
        r"roi_heads\.box_head\.([0-3])\.([01])\.(\w+)",
        lambda m: f"box_heads.stages.0.convs.{m[1]}.{m[2]}.{m[3]}",
    ),
    (r"roi_heads\.box_head\.(fc6|5)\.(\w+)", lambda m: f"box_heads.stages.0.fcs.0.{m[2]}"),
    (r"roi_heads\.box_head\.fc7\.(\w+)", lambda m: f"box_heads.stages.0.fcs.2.{m[1]}"),
    (r"roi_heads\.box_predictor\.cls_score\.(\w+)", lambda m: f"box_heads.stages.0.classifier.{m[1]}"),
    (r"roi_heads\.box_predictor\.bbox_pred\.(\w+)", lambda m: f"box_heads.stages.0.regressor.{m[1]}"),
    (r"roi_heads\.mask_head\.(?:mask_fcn1|0\.0)\.(\w+)", lambda m: f"ibpp.mask_heads.0.from_features.{m[1]}"),
    (r"roi_heads\.mask_head\.0\.1\.(\w+)", lambda m: f"ibpp.mask_heads.0.norm.{m[1]}"),
    (
        r"roi_heads\.mask_head\.mask_fcn([2-4])\.(\w+)",
        lambda m: f"ibpp.mask_heads.0.convs.{_number(m[1], -2)}.0.{m[2]}",
    ),
    (
        r"roi_heads\.mask_head\.([1-3])\.([01])\.(\w+)",
        lambda m: f"ibpp.mask_heads.0.convs.{_number(m[1], -1)}.{m[2]}.{m[3]}",
    ),
    (r"roi_heads\.mask_predictor\.conv5_mask\.(\w+)", lambda m: f"ibpp.mask_heads.0.deconv.{m[1]}"),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.(\w+)", lambda m: f"ibpp.mask_heads.0.predictor.{m[1]}"),
]

_CAFFE2_BLOCK = {"branch1": "shortcut", "branch2a": "conv1", "branch2b": "conv2", "branch2c": "conv3"}
_CAFFE2_LEAF = {"w": "weight", "s": "weight", "b": "bias", "rm": "running_mean", "riv": "running_var"}


def caffe2_name(name: str) -> str | None:
    """Return detectron2's name of a ResNet weight in Caffe2 (MSRA's and FAIR's ImageNet files), or None."""
    match = re.fullmatch(r"(?:res_)?(conv1|res(\d)_(\d+)_(branch\w+?))_(bn_|gn_)?(w|s|b|rm|riv)", name)
    if match is None or (not match[5] and match[6] == "b"):
        return None  # biases before a norm (all zero but in the stem) exist neither here nor in detectron2
    layer = "stem.conv1" if match[1] == "conv1" else f"res{match[2]}.{match[3]}.{_CAFFE2_BLOCK[match[4]]}"
    return f"backbone.bottom_up.{layer}.{'norm.' if match[5] else ''}{_CAFFE2_LEAF[match[6]]}"


def _apply(rules: list[Rule], name: str) -> str | None:
    for pattern, new_name in rules:
        if match := re.fullmatch(pattern, name):
            return new_name(match)
    return None


def _detectron2_name(name: str) -> str | None:
    """Rename a detectron2 weight; files of a backbone alone omit the prefix that it has in a model."""
    return _apply(_DETECTRON2, re.sub(r"^(?=stem\.|res\d\.)", "backbone.bottom_up.", name))


def _caffe2_name(name: str) -> str | None:
    in_detectron2 = caffe2_name(name)
    return None if in_detectron2 is None else _apply(_DETECTRON2, in_detectron2)


def _torchvision_name(name: str) -> str | None:
    return _apply(_TORCHVISION, name)


def _classifier_name(name: str) -> str | None:
    return None if name.startswith("fc.") else f"backbone.{name}"


@dataclass(frozen=True)
class Source:
    """Kind of weight file, and properties of its networks that weights do not determine.

    Attributes:
        title: description for messages.
        marker: pattern that at least one name in the file matches.
        new_name: original name -> refine's name, or None.
        parts: pattern of the names of network weights, which must all have a name in refine.
        bgr: whether channels are BGR with standard deviations 1 (ResNeXt: FAIR's), not RGB as in torchvision.
        torchvision_detector: whether class 0 is background (here and in detectron2 it is the last), and anchors,
            ROI-Align and FrozenBatchNorm are those of torchvision (see `ModelConfig`).
    """

    title: str
    marker: str
    new_name: Callable[[str], str | None]
    parts: str
    bgr: bool = False
    torchvision_detector: bool = False


SOURCES = [
    Source(
        "detectron2 model",
        r"backbone\.bottom_up\..+",
        _detectron2_name,
        r"(backbone|proposal_generator\.rpn_head|roi_heads|sem_seg_head)\..+",
        bgr=True,
    ),
    Source(
        "torchvision backbone in detectron2's names", r"stem\.conv1\.weight", _detectron2_name, r"(stem|res\d)\..+"
    ),
    Source("Caffe2 backbone", r"res2_0_branch2a_w", _caffe2_name, r"res\w+_(w|b|s|rm|riv)", bgr=True),
    Source(
        "torchvision detector",
        r"backbone\.body\..+",
        _torchvision_name,
        r"(backbone|rpn\.head|roi_heads)\..+",
        torchvision_detector=True,
    ),
    Source("torchvision classifier", r"layer1\.0\.conv1\.weight", _classifier_name, r"layer\d\..+"),
]


@dataclass
class Renamed:
    """State dict in refine's names.

    Attributes:
        source: kind of the file.
        weights: refine's name -> array.
        names: original name -> refine's name, in the order of the file.
        left: original names without a counterpart.
    """

    source: Source
    weights: dict[str, np.ndarray]
    names: dict[str, str]
    left: list[str]


def apply_source_settings(config: ModelConfig, renamed: Renamed) -> None:
    """Set properties that weights do not determine to the values typical of their source.

    Bottlenecks of Caffe2's and detectron2's ResNets 50 and 101 with FrozenBatchNorm are assumed to have their
    stride in the first 1×1 convolution, as in all configs of the model zoo, which start from MSRA's weights.
    Only torchvision's first Mask R-CNN has FrozenBatchNorm without epsilon. Maps have the memory layout of the
    originals (`ModelConfig.channels_last`).

    Args:
        config: config of the network, modified in place.
        renamed: weights and kind of the file.
    """
    source = renamed.source
    grouped = config.backbone.name.startswith("resnext")
    frozen = config.backbone.norm == "frozen_bn"
    config.roi_sampling, config.channels_last = 0, False
    if source.bgr:
        config.channels = "BGR"
        config.pixel_mean = (103.53, 116.28, 123.675)
        config.pixel_std = (57.375, 57.12, 58.395) if grouped else (1.0, 1.0, 1.0)
        config.backbone.stride_in_1x1 = frozen and config.backbone.name in ("resnet50", "resnet101")
    if source.torchvision_detector:
        config.roi_sampling, config.roi_aligned = 2, False
        config.rpn.torchvision_anchors = True
        counted = any(n.startswith("backbone.body.") and n.endswith("num_batches_tracked") for n in renamed.left)
        if frozen and not counted:
            config.backbone.norm_eps = 0.0


def rename(state: Mapping[str, np.ndarray]) -> Renamed | None:
    """Detect the kind of file and rename its weights; return None if the kind is unknown.

    Raises:
        RefineError: the network has unsupported layers.
    """
    for source in SOURCES:
        if any(re.fullmatch(source.marker, name) for name in state):
            break
    else:
        return None
    result = Renamed(source, {}, {}, [])
    unknown = []
    for name, value in state.items():
        new_name = None if name.endswith("num_batches_tracked") else source.new_name(name)
        if new_name is None:
            result.left.append(name)
            irrelevant = name.endswith("num_batches_tracked") or (name.endswith("_b") and not value.any())
            if re.fullmatch(source.parts, name) and not irrelevant:
                unknown.append(f"{name} {value.shape}")
        else:
            result.weights[new_name] = value
            result.names[name] = new_name
    if unknown:
        raise RefineError(
            f"{source.title}: {counted(len(unknown), 'weight')} of unsupported layers, first "
            f"{', '.join(unknown[:3])}; give one of the architectures listed in `refine convert --help`"
        )
    _add_statistics(result, state)
    return result


def _add_statistics(renamed: Renamed, state: Mapping[str, np.ndarray]) -> None:
    """Add mean 0 and variance 1 for BatchNorms whose statistics Caffe2 has folded into scale and shift."""
    for name, scale in state.items():
        weight = renamed.names.get(name, "")
        if name.endswith("_bn_s") and weight.replace("weight", "running_mean") not in renamed.weights:
            renamed.weights[weight.replace("weight", "running_mean")] = np.zeros_like(scale)
            renamed.weights[weight.replace("weight", "running_var")] = np.full_like(scale, 1 - 1e-5)  # + eps = 1
