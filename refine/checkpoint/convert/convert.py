"""Import of detectron2, torchvision and Caffe2 weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refine.checkpoint.convert.infer import infer_config
from refine.checkpoint.convert.names import SOURCES, Renamed, apply_source_settings, rename
from refine.checkpoint.convert.settings import Settings, read_settings
from refine.checkpoint.convert.unpickle import load_arrays
from refine.checkpoint.folder import SavedModel, build_model, save_model
from refine.config import to_mapping
from refine.errors import RefineError, counted
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
    """Converted weights, and an account of every original name.

    Attributes:
        source: description of the kind of file.
        config: config of the network; for a backbone alone, only its backbone and pixel statistics apply.
        state: state dict in refine's names, complete except for `absent`.
        backbone_only: whether the file contains only a backbone.
        names: original name -> refine's name. `pixel_mean` and `pixel_std` become settings, not weights.
        left: original names without a counterpart -> their shapes.
        absent: ["semantic_head"] for a Mask R-CNN, whose semantic head then predicts no stuff anywhere.
        fusion, test_size: as in `Settings`.
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
        """Return the number of thing classes of the box head."""
        return self.state["box_heads.stages.0.classifier.weight"].shape[0] - 1

    @property
    def num_semantic(self) -> int | None:
        """Return the number of channels of the semantic head, or None without one."""
        predictor = self.state.get("semantic_head.predictor.weight")
        return None if predictor is None else predictor.shape[0]

    def report(self) -> dict[str, Any]:
        """Return a JSON mapping of every name in the file, its conversion, and the config of the network."""
        described = to_mapping(self.config)
        return {
            "source": self.source,
            "taken": {name: {"as": new, "shape": self._shape(new)} for name, new in self.names.items()},
            "left": {name: list(shape) for name, shape in self.left.items()},
            "absent": self.absent,
            "model": {"backbone": described["backbone"], **_pixels(described)} if self.backbone_only else described,
        }

    def _shape(self, name: str) -> list[int]:
        return list(self.state[name].shape) if name in self.state else [3]


def _pixels(described: dict[str, Any]) -> dict[str, Any]:
    return {name: described[name] for name in ("channels", "pixel_mean", "pixel_std")}


def read_checkpoint(path: str | Path) -> dict[str, np.ndarray]:
    """Read arrays by name from detectron2's or Caffe2's .pkl, a .pth or .safetensors, without running code in it.

    Returns:
        Arrays by name; dtypes that NumPy does not have (bfloat16, 8-bit floats) as float32.

    Raises:
        RefineError: the file is missing, or contains anything but arrays, numbers and strings; see `read_weights`.
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
    """Rename the weights of a state dict and infer its network.

    Supported are detectron2's Panoptic-FPN and Mask R-CNN with a ResNet-FPN (FrozenBN or GN, deformable, cascade),
    ImageNet backbones of Caffe2 and torchvision, and torchvision's Mask R-CNN.

    Args:
        state: arrays by name, as returned by `read_checkpoint`.
        settings: settings that weights do not determine, or the whole network; None uses the source's defaults.
        num_things: required number of thing classes. It matters only for torchvision's detectors with COCO's 91
            ids: any number but 90 selects the 80 ids in use.

    Raises:
        RefineError: the kind of file or the architecture is unknown, or weights are missing.
    """
    renamed = rename(state)
    if renamed is None:
        known = ", ".join(source.title for source in SOURCES)
        first = ", ".join(list(state)[:3])
        raise RefineError(f"weights: unknown names ({first}, …); give a file of one of these kinds: {known}")
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
        apply_source_settings(config, renamed)
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
    """Raise RefineError if a required part of the network is missing; the semantic head as a whole is optional."""
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
            f"{renamed.source.title}: {counted(len(missing), 'missing weight')}, first {', '.join(missing[:3])} "
            f"(refine's names); give the file of a complete Panoptic-FPN or Mask R-CNN"
        )


def _background_last(weights: dict[str, np.ndarray], num_things: int | None) -> None:
    """Move background from class 0 to the end; keep the 80 of COCO's 91 ids in use, unless 90 are required.

    The removed classes have a small share of the softmax (no training image shows them), so scores increase
    by that share.
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
                    f"weights: {other} has the shape {weights[other].shape}, expected {count} classes; "
                    f"give the file of a complete Mask R-CNN"
                )
        weights[name + key] = weights[name + key][[*things, 0]]
        boxes = boxes.reshape(count, 4, *boxes.shape[1:])[things]
        weights[regressor] = boxes.reshape(-1, *boxes.shape[2:])
        weights[predictor] = weights[predictor][things]


def to_model(conversion: Conversion, categories: Categories) -> PanopticModel:
    """Build the network and load the converted weights.

    Raises:
        RefineError: the number of classes differs, or the weights do not fit.
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
    # A detector without a semantic head gets one that predicts no stuff.
    optional = [f"{part}." for part in conversion.absent]
    model = build_model(conversion.config, categories, shapes, conversion.source, "config", optional)
    if conversion.absent:
        _predict_no_stuff(model)
    fit_weights(model, conversion.state, conversion.source, optional)
    return model.eval()


@torch.no_grad()
def _predict_no_stuff(model: PanopticModel) -> None:
    """Make an untrained semantic head predict the merged thing class, and so no stuff, everywhere."""
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
    """Convert a file: a detector to a model folder, a backbone to a file for `backbone.weights`.

    Args:
        source: path of a .pkl, .pth or .safetensors file, see `convert`.
        destination: path of the model folder, or FILE.safetensors for a backbone.
        categories: panoptic JSON with the categories of the model; those of COCO if None.
        config: path of a configuration, see `read_settings`.

    Raises:
        RefineError: a file cannot be read or written, or the weights are unknown or do not fit.
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
                f"{source}: contains only a backbone, not a model; give -o FILE.safetensors, and use that file as "
                f"backbone.weights"
            )
        state = {k.removeprefix("backbone."): v for k, v in conversion.state.items()}
        fit_weights(build_backbone(conversion.config.backbone), state, source)
        write_weights(destination, state)
        return conversion
    saved = SavedModel(to_model(conversion, kinds), kinds, test_size=conversion.test_size)
    saved.fusion, saved.data = conversion.fusion, f"converted from a {conversion.source}"
    save_model(destination, saved)
    return conversion
