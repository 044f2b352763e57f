"""What others call the weights of the same networks, and what we call them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from refine.errors import RefineError
from refine.modeling.config import ModelConfig

Rule = tuple[str, Callable[[re.Match[str]], str]]
"""A pattern that a whole name must match, and our name for it."""


def _number(text: str, offset: int) -> int:
    return int(text) + offset


def _stage(text: str | None) -> str:
    """Of a cascade: "1." -> "1"; a single head has no number."""
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
        # Convolutions and upsamplings alternate.
        r"sem_seg_head\.p(\d)\.(\d)\.(norm\.)?(\w+)",
        lambda m: f"semantic_head.levels.{_number(m[1], -2)}.{int(m[2]) // 2}.{1 if m[3] else 0}.{m[4]}",
    ),
    (r"sem_seg_head\.predictor\.(\w+)", lambda m: f"semantic_head.predictor.{m[1]}"),
    (r"pixel_(mean|std)", lambda m: f"pixel_{m[1]}"),
]

_TORCHVISION: list[Rule] = [
    (r"backbone\.body\.(.+)", lambda m: f"backbone.{m[1]}"),
    (
        # Files written before torchvision 0.13 lack the numbers of blocks of convolution and norm.
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
    """Caffe2's name of a ResNet's weight (as in MSRA's and FAIR's ImageNet files) -> detectron2's, or None."""
    match = re.fullmatch(r"(?:res_)?(conv1|res(\d)_(\d+)_(branch\w+?))_(bn_|gn_)?(w|s|b|rm|riv)", name)
    if match is None or (not match[5] and match[6] == "b"):
        return None  # biases before a norm (there all zero, but the stem's) are in no network here or in detectron2
    layer = "stem.conv1" if match[1] == "conv1" else f"res{match[2]}.{match[3]}.{_CAFFE2_BLOCK[match[4]]}"
    return f"backbone.bottom_up.{layer}.{'norm.' if match[5] else ''}{_CAFFE2_LEAF[match[6]]}"


def _apply(rules: list[Rule], name: str) -> str | None:
    for pattern, ours in rules:
        if match := re.fullmatch(pattern, name):
            return ours(match)
    return None


def _detectron2_name(name: str) -> str | None:
    """A backbone's file lacks the prefix that it has in a model."""
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
    """A family of files, and what its networks expect that no weight tells.

    Attributes:
        title: for people.
        marker: pattern that one of its names matches.
        our_name: their name -> ours, or None.
        parts: pattern of the names of the network's parts: one that has no name of ours cannot be left.
        bgr: channels are BGR with standard deviations 1 (of ResNeXt: FAIR's), not RGB as torchvision's.
        torchvision_detector: class 0 is background (here and in detectron2 it comes last), and anchors,
            ROI-Align and FrozenBatchNorm are torchvision's (see `ModelConfig`).
    """

    title: str
    marker: str
    our_name: Callable[[str], str | None]
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
    """A foreign state dict in our names.

    Attributes:
        source: its family.
        weights: our name -> array.
        names: their name -> ours, in the order of the file.
        left: their names that we have no use for.
    """

    source: Source
    weights: dict[str, np.ndarray]
    names: dict[str, str]
    left: list[str]


def apply_customs(config: ModelConfig, renamed: Renamed) -> None:
    """Fill in what the weights do not tell, from the customs of where they come from.

    Bottlenecks are taken to stride in their first 1×1 in Caffe2's and detectron2's ResNets 50 and 101 with
    FrozenBatchNorm, as in all of the model zoo's configs, which begin with MSRA's weights. torchvision's
    first Mask R-CNN has the one FrozenBatchNorm without an epsilon. Maps are laid out as the originals have
    them (`ModelConfig.channels_last`).

    Args:
        config: changed in place.
        renamed: the weights and their family.
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
    """Recognise the family and rename; None if it is none that we know.

    Raises:
        RefineError: the network has layers that ours have not.
    """
    for source in SOURCES:
        if any(re.fullmatch(source.marker, name) for name in state):
            break
    else:
        return None
    result = Renamed(source, {}, {}, [])
    unknown = []
    for name, value in state.items():
        ours = None if name.endswith("num_batches_tracked") else source.our_name(name)
        if ours is None:
            result.left.append(name)
            silent = name.endswith("num_batches_tracked") or (name.endswith("_b") and not value.any())
            if re.fullmatch(source.parts, name) and not silent:
                unknown.append(f"{name} {value.shape}")
        else:
            result.weights[ours] = value
            result.names[name] = ours
    if unknown:
        raise RefineError(
            f"{source.title}: {len(unknown)} weights belong to layers that no network here has, first "
            f"{', '.join(unknown[:3])}; only the architectures that `refine convert --help` names convert"
        )
    _add_statistics(result, state)
    return result


def _add_statistics(renamed: Renamed, state: Mapping[str, np.ndarray]) -> None:
    """Caffe2 folds a BatchNorm's statistics into scale and shift; here mean 0 and variance 1 stand for that."""
    for name, scale in state.items():
        ours = renamed.names.get(name, "")
        if name.endswith("_bn_s") and ours.replace("weight", "running_mean") not in renamed.weights:
            renamed.weights[ours.replace("weight", "running_mean")] = np.zeros_like(scale)
            renamed.weights[ours.replace("weight", "running_var")] = np.full_like(scale, 1 - 1e-5)  # + eps = 1
