"""Weights of others' networks, as models of ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refine.checkpoint.convert.infer import infer_config
from refine.checkpoint.convert.names import SOURCES, Renamed, apply_customs, rename
from refine.checkpoint.convert.settings import Settings, read_settings
from refine.checkpoint.convert.unpickle import load_arrays
from refine.checkpoint.folder import SavedModel, build_model, save_model
from refine.config import to_mapping
from refine.errors import RefineError
from refine.files import read_json
from refine.fusion.config import FusionConfig
from refine.modeling.backbones import build_backbone
from refine.modeling.config import ModelConfig
from refine.modeling.model import PanopticModel
from refine.structures import Categories
from refine.tensors import check_finite, find_state, fit_weights, read_weights, write_weights

COCO = Path(__file__).with_name("coco_categories.json")
"""The 133 categories of COCO panoptic."""


@dataclass
class Conversion:
    """Weights in our names, and an account of every name.

    Attributes:
        source: where such files come from, for people.
        config: of the network; for a backbone alone, its part of it and the pixels' count.
        state: our state dict, complete but for `absent`.
        backbone_only: the file holds nothing but a backbone.
        names: their name -> ours. `pixel_mean` and `pixel_std` are settings here, not weights.
        left: their names without a counterpart, and their shapes.
        absent: ["semantic_head"] of a Mask R-CNN, which has none: ours then says "no stuff" everywhere.
        fusion, test_size: see `Settings`.
    """

    source: str
    config: ModelConfig
    state: dict[str, Tensor]
    backbone_only: bool
    names: dict[str, str]
    left: dict[str, tuple[int, ...]]
    absent: list[str] = field(default_factory=list)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    test_size: tuple[int, int] = (800, 1333)

    @property
    def num_things(self) -> int:
        """Thing classes that the box head tells apart."""
        return self.state["box_heads.stages.0.classifier.weight"].shape[0] - 1

    @property
    def num_semantic(self) -> int | None:
        """Channels of the semantic head; None without one."""
        predictor = self.state.get("semantic_head.predictor.weight")
        return None if predictor is None else predictor.shape[0]

    def report(self) -> dict[str, Any]:
        """JSON: every name of the file, what became of it, and the settings that no weight tells."""
        described = to_mapping(self.config)
        return {
            "source": self.source,
            "taken": {theirs: {"as": ours, "shape": self._shape(ours)} for theirs, ours in self.names.items()},
            "left": {name: list(shape) for name, shape in self.left.items()},
            "absent": self.absent,
            "model": {"backbone": described["backbone"], **_pixels(described)} if self.backbone_only else described,
        }

    def _shape(self, ours: str) -> list[int]:
        return list(self.state[ours].shape) if ours in self.state else [3]


def _pixels(described: dict[str, Any]) -> dict[str, Any]:
    return {name: described[name] for name in ("channels", "pixel_mean", "pixel_std")}


def read_checkpoint(path: str | Path) -> dict[str, np.ndarray]:
    """Read arrays by name from detectron2's or Caffe2's .pkl, a .pth or .safetensors, without running its code.

    Returns:
        Arrays; what NumPy has no kind for (bfloat16, eight-bit floats) as float32.

    Raises:
        RefineError: no such file, or one that holds anything but arrays, numbers and texts; see `read_weights`.
    """
    path = Path(path)
    if path.suffix != ".pkl":
        return {name: _array(tensor) for name, tensor in read_weights(path).items()}
    arrays = find_state(load_arrays(path), path)
    floats = {name: torch.from_numpy(array) for name, array in arrays.items() if array.dtype.kind == "f"}
    check_finite(floats, path)
    return arrays


def _array(tensor: Tensor) -> np.ndarray:
    known = tensor.dtype in (torch.float16, torch.float32, torch.float64) or not tensor.is_floating_point()
    return (tensor if known else tensor.float()).numpy()


def convert(
    state: Mapping[str, np.ndarray], settings: Settings | None = None, num_things: int | None = None
) -> Conversion:
    """Rename a foreign state dict and infer its network.

    Known are detectron2's Panoptic-FPN and Mask R-CNN with a ResNet-FPN (FrozenBN or GN, deformable, cascade),
    Caffe2's and torchvision's ImageNet backbones, and torchvision's Mask R-CNN.

    Args:
        state: of `read_checkpoint`.
        settings: what weights do not tell, or the whole network; None follows the source's customs.
        num_things: thing classes that are wanted. It matters for torchvision's detectors of COCO's 91 ids
            alone: all but 90 takes the 80 ids that are in use.

    Raises:
        RefineError: an unknown family or architecture, or weights that are missing from a part.
    """
    renamed = rename(state)
    if renamed is None:
        known = ", ".join(source.title for source in SOURCES)
        first = ", ".join(list(state)[:3])
        raise RefineError(f"weights: unknown names ({first}, …); files of these kinds convert: {known}")
    weights = renamed.weights
    pixels = {n: weights.pop(n).ravel() for n in ("pixel_mean", "pixel_std") if n in weights}
    backbone_only = all(name.startswith("backbone.") for name in weights)
    if not backbone_only:
        _require_parts(renamed)
    if renamed.source.torchvision_detector:
        _background_last(weights, num_things)
    settings = settings or Settings("")
    if settings.model is not None:
        config = settings.model
    else:
        config = infer_config(weights)
        apply_customs(config, renamed)
        for name, value in pixels.items():
            setattr(config, name, tuple(value.tolist()))
        settings.complete(config)
    return Conversion(
        source=renamed.source.title,
        config=config,
        state={k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in weights.items()},
        backbone_only=backbone_only,
        names=renamed.names,
        left={name: state[name].shape for name in renamed.left},
        absent=[] if backbone_only or "semantic_head.predictor.weight" in weights else ["semantic_head"],
        fusion=settings.fusion,
        test_size=settings.test_size,
    )


def _require_parts(renamed: Renamed) -> None:
    """Refuse a network without a part that each of ours has; only the semantic head may be absent, as a whole."""
    needed = [
        "fpn.levels.inner_blocks.0.0.weight",
        "rpn.conv.weight",
        "box_heads.stages.0.classifier.weight",
        "box_heads.stages.0.classifier.bias",
        "box_heads.stages.0.regressor.weight",
        "box_heads.stages.0.regressor.bias",
        "ibpp.mask_heads.0.predictor.weight",
        "ibpp.mask_heads.0.predictor.bias",
    ]
    if any(name.startswith("semantic_head.") for name in renamed.weights):
        needed.append("semantic_head.predictor.weight")
    if missing := [name for name in needed if name not in renamed.weights]:
        raise RefineError(
            f"{renamed.source.title}: {len(missing)} weights are missing, first {', '.join(missing[:3])} (by our "
            f"names); give the file of a whole Panoptic-FPN or Mask R-CNN"
        )


def _background_last(weights: dict[str, np.ndarray], num_things: int | None) -> None:
    """Class 0 is background: it moves to the end; of COCO's 91 ids the 80 in use stay, unless 90 are wanted.

    The classes that go have a small share in the softmax (they are in no training image), so scores rise by
    that share.
    """
    name = "box_heads.stages.0.classifier."
    count = len(weights[f"{name}bias"])
    things = list(range(1, count))
    if count == 91 and num_things != 90:
        things = [c["id"] for c in read_json(COCO) if c["isthing"]]
    for key in ("weight", "bias"):
        regressor, predictor = f"box_heads.stages.0.regressor.{key}", f"ibpp.mask_heads.0.predictor.{key}"
        boxes = weights[regressor]
        lengths = {
            name + key: len(weights[name + key]),
            regressor: len(boxes) / 4,
            predictor: len(weights[predictor]),
        }
        for other, length in lengths.items():
            if length != count:
                raise RefineError(
                    f"weights: {other} has the shape {weights[other].shape}, but there are {count} classes; "
                    f"give the file of a whole Mask R-CNN"
                )
        weights[name + key] = weights[name + key][[*things, 0]]
        boxes = boxes.reshape(count, 4, *boxes.shape[1:])[things]
        weights[regressor] = boxes.reshape(-1, *boxes.shape[2:])
        weights[predictor] = weights[predictor][things]


def to_model(conversion: Conversion, categories: Categories) -> PanopticModel:
    """Build the network and fill it.

    Raises:
        RefineError: another number of classes, or weights that do not fit.
    """
    things, channels = conversion.num_things, conversion.num_semantic
    merged = conversion.config.semantic_head.classes == "stuff"
    expected = categories.num_stuff + 1 if merged else len(categories)
    if things != categories.num_things or channels not in (None, expected):
        stuff = "no" if channels is None else channels - (1 if merged else things)
        raise RefineError(
            f"categories: {categories.num_things} things and {categories.num_stuff} stuff classes, but the "
            f"weights have {things} and {stuff}; give the panoptic JSON of the data that they were trained on"
        )
    shapes = {name: tensor.shape for name, tensor in conversion.state.items()}
    # A detector without a semantic head gets one that finds no stuff.
    optional = [f"{part}." for part in conversion.absent]
    model = build_model(conversion.config, categories, shapes, conversion.source, "config", optional)
    if conversion.absent:
        _say_no_stuff(model)
    fit_weights(model, conversion.state, conversion.source, optional)
    return model.eval()


@torch.no_grad()
def _say_no_stuff(model: PanopticModel) -> None:
    """Make an untrained semantic head choose the merged thing class, which is no stuff, everywhere."""
    predictor = model.semantic_head.predictor
    assert predictor.bias is not None
    predictor.weight.zero_()
    predictor.bias.zero_()
    predictor.bias[0] = 10.0


def convert_file(
    source: str | Path,
    destination: str | Path,
    categories: str | Path | None = None,
    config: str | Path | None = None,
) -> Conversion:
    """Convert a file: a detector becomes a model folder, a backbone a file for `backbone.weights`.

    Args:
        source: .pkl, .pth or .safetensors, see `convert`.
        destination: folder, or for a backbone FILE.safetensors.
        categories: panoptic JSON whose categories the model tells apart; COCO's if None.
        config: see `read_settings`.

    Raises:
        RefineError: what cannot be read, recognised, fitted or written.
    """
    destination = Path(destination)
    path = Path(categories) if categories else COCO
    content = read_json(path)
    entries = content["categories"] if isinstance(content, dict) and "categories" in content else content
    kinds = Categories.from_json(entries, str(path))
    settings = None if config is None else read_settings(config)
    arrays = read_checkpoint(source)
    try:
        conversion = convert(arrays, settings, kinds.num_things)
    except RefineError as error:
        raise RefineError(f"{source}: {error}") from error
    if conversion.backbone_only:
        if destination.suffix != ".safetensors":
            raise RefineError(
                f"{source}: holds a backbone alone, not a model; give -o FILE.safetensors, which backbone.weights "
                f"takes"
            )
        state = {k.removeprefix("backbone."): v for k, v in conversion.state.items()}
        fit_weights(build_backbone(conversion.config.backbone), state, source)
        write_weights(destination, state)
        return conversion
    if destination.is_file():
        raise RefineError(f"{destination}: is a file; name the folder of the model")
    saved = SavedModel(to_model(conversion, kinds), kinds, test_size=conversion.test_size)
    saved.fusion, saved.data = conversion.fusion, f"converted from a {conversion.source}"
    save_model(destination, saved)
    return conversion
