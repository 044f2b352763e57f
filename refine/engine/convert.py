"""Weights of others' networks, as models of ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refine.engine.checkpoint import SavedModel, save_model, write_weights
from refine.engine.convert_config import infer_config
from refine.engine.convert_names import SOURCES, Renamed, apply_traits, rename
from refine.engine.unpickle import load_arrays
from refine.errors import RefineError
from refine.files import atomic_path, read_json
from refine.modeling.backbones import build_backbone
from refine.modeling.config import ModelConfig
from refine.modeling.model import PanopticModel
from refine.modeling.pretrained import load_exactly
from refine.structures import Categories

COCO = Path(__file__).with_name("coco_categories.json")
"""The 133 categories of COCO panoptic."""


@dataclass
class Conversion:
    """Weights in our names, and an account of every name.

    Attributes:
        source: where such files come from, for people.
        config: of the network; for a backbone alone, its part of it counts.
        state: our state dict, complete but for `absent`.
        backbone_only: the file holds nothing but a backbone.
        names: their name -> ours.
        left: their names without a counterpart.
        absent: parts of our network that the file lacks; they stay random.
    """

    source: str
    config: ModelConfig
    state: dict[str, Tensor]
    backbone_only: bool
    names: dict[str, str]
    left: list[str]
    absent: list[str]

    @property
    def num_things(self) -> int:
        """Thing classes that the box head tells apart."""
        return self.state["box_heads.stages.0.classifier.weight"].shape[0] - 1

    @property
    def num_semantic(self) -> int | None:
        """Channels of the semantic head; None without one."""
        predictor = self.state.get("semantic_head.predictor.weight")
        return None if predictor is None else predictor.shape[0]


def read_checkpoint(path: str | Path) -> dict[str, np.ndarray]:
    """Arrays by name from detectron2's or Caffe2's .pkl, or from a .pth, without running foreign code.

    Raises:
        RefineError: no such file, or one that holds anything but arrays, numbers and texts.
    """
    path = Path(path)
    content: Any
    if path.suffix == ".pkl":
        content = load_arrays(path)
    else:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file fails in every possible way
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise RefineError(
                f"{path}: cannot be read as weights ({reason}); give a .pth or detectron2's .pkl"
            ) from error
    for key in ("model", "state_dict", "blobs"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise RefineError(f"{path}: holds a {type(content).__name__}, not weights by name; give a state dict")
    arrays = {str(k): v.numpy() if isinstance(v, Tensor) else v for k, v in content.items()}
    return {k: v for k, v in arrays.items() if isinstance(v, np.ndarray)}


def convert(state: Mapping[str, np.ndarray], stride_in_1x1: bool | None = None) -> Conversion:
    """Rename a foreign state dict and infer its network.

    Known are detectron2's Panoptic-FPN and Mask R-CNN with a ResNet-FPN (FrozenBN or GN, deformable, cascade),
    Caffe2's and torchvision's ImageNet backbones, and torchvision's Mask R-CNN.

    Args:
        state: of `read_checkpoint`.
        stride_in_1x1: where bottlenecks stride, which weights do not tell; None follows the source's custom.

    Raises:
        RefineError: an unknown family or architecture, or weights that are missing from a part.
    """
    renamed = rename(state)
    if renamed is None:
        known = ", ".join(source.title for source in SOURCES)
        first = ", ".join(list(state)[:3])
        raise RefineError(f"weights: unknown names ({first}, …); files of these kinds convert: {known}")
    _leave_double_rpn(renamed)
    if renamed.source.background_first:
        _background_last(renamed.weights)
    config = infer_config(renamed.weights)
    apply_traits(config, renamed.source, stride_in_1x1)
    result = Conversion(
        source=renamed.source.title,
        config=config,
        state={k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in renamed.weights.items()},
        backbone_only=all(name.startswith("backbone.") for name in renamed.weights),
        names=renamed.names,
        left=renamed.left,
        absent=[],
    )
    if not result.backbone_only:
        present = {_part(name) for name in result.state}
        with torch.device("meta"):
            own = [_part(name) for name in _build(result, 1).state_dict()]
        result.absent = sorted({part for part in own if part not in present})
    return result


def _part(name: str) -> str:
    return name.split(".", 1)[0]


def _leave_double_rpn(renamed: Renamed) -> None:
    """torchvision's second version has two convolutions where ours has one: none of its RPN is of use."""
    if not any(name.startswith("rpn.head.conv.1.") for name in renamed.left):
        return
    for name, ours in list(renamed.names.items()):
        if ours.startswith("rpn."):
            del renamed.names[name], renamed.weights[ours]
            renamed.left.append(name)


def _background_last(weights: dict[str, np.ndarray]) -> None:
    """Class 0 is background: drop it or move it to the end; of COCO's 91 ids keep the 80 in use."""
    name = "box_heads.stages.0.classifier."
    count = len(weights[f"{name}bias"])
    things = [c["id"] for c in read_json(COCO) if c["isthing"]] if count == 91 else list(range(1, count))
    for key in ("weight", "bias"):
        weights[name + key] = weights[name + key][[*things, 0]]
        boxes = weights[f"box_heads.stages.0.regressor.{key}"]
        boxes = boxes.reshape(count, 4, *boxes.shape[1:])[things]
        weights[f"box_heads.stages.0.regressor.{key}"] = boxes.reshape(-1, *boxes.shape[2:])
        if f"ibpp.mask_heads.0.predictor.{key}" in weights:
            masks = weights[f"ibpp.mask_heads.0.predictor.{key}"]
            weights[f"ibpp.mask_heads.0.predictor.{key}"] = masks[things]


def _build(conversion: Conversion, num_stuff: int) -> PanopticModel:
    if conversion.num_semantic is not None:
        num_stuff = conversion.num_semantic - 1
    things = conversion.num_things
    return PanopticModel(conversion.config, things, things + num_stuff)


def to_model(conversion: Conversion, categories: Categories) -> PanopticModel:
    """Build the network and fill it.

    Raises:
        RefineError: another number of classes, or weights that do not fit.
    """
    things, channels = conversion.num_things, conversion.num_semantic
    if things != categories.num_things or channels not in (None, categories.num_stuff + 1):
        stuff = "no" if channels is None else channels - 1
        raise RefineError(
            f"categories: {categories.num_things} things and {categories.num_stuff} stuff classes, but the "
            f"weights have {things} and {stuff}; give the panoptic JSON of the data that they were trained on"
        )
    model = _build(conversion, categories.num_stuff)
    random = {k: v for k, v in model.state_dict().items() if _part(k) in conversion.absent}
    load_exactly(model, conversion.state | random, conversion.source)
    return model.eval()


def convert_file(
    source: str | Path,
    destination: str | Path,
    categories: str | Path | None = None,
    stride_in_1x1: bool | None = None,
) -> Conversion:
    """Convert a file: a detector becomes a model folder, a backbone a file for `backbone.weights`.

    Args:
        source: .pkl or .pth, see `convert`.
        destination: folder, or for a backbone FILE.safetensors.
        categories: panoptic JSON whose categories the model tells apart; COCO's if None.
        stride_in_1x1: see `convert`.

    Raises:
        RefineError: what cannot be read, recognised, fitted or written.
    """
    destination = Path(destination)
    conversion = convert(read_checkpoint(source), stride_in_1x1)
    if conversion.backbone_only:
        if destination.suffix != ".safetensors":
            raise RefineError(f"{source}: holds a backbone alone; name FILE.safetensors instead of {destination}")
        state = {k.removeprefix("backbone."): v for k, v in conversion.state.items()}
        load_exactly(build_backbone(conversion.config.backbone), state, str(source))
        with atomic_path(destination) as temporary:
            write_weights(temporary, state)
        return conversion
    path = Path(categories) if categories else COCO
    content = read_json(path)
    entries = content["categories"] if isinstance(content, dict) and "categories" in content else content
    model = to_model(conversion, Categories.from_json(entries, str(path)))
    save_model(destination, SavedModel(model, Categories.from_json(entries, str(path)), data=_origin(conversion)))
    return conversion


def _origin(conversion: Conversion) -> str:
    note = f"; untrained: {', '.join(conversion.absent)}" if conversion.absent else ""
    return f"converted from a {conversion.source}{note}"
