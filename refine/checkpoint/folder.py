"""Model folders: weights (safetensors) and everything needed to use them (config.json).

No file contains pickled code, and folders are written atomically.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refine.checkpoint.find import ONNX, find_model
from refine.config import from_mapping, to_mapping
from refine.errors import RefineError
from refine.files import read_json, write_json
from refine.folders import atomic_folder
from refine.fusion.config import FusionConfig, Method
from refine.modeling.config import ModelConfig
from refine.modeling.model import PanopticModel
from refine.ops.shapes import shapes_only
from refine.structures import Categories
from refine.tensors import (
    Shapes,
    check_kinds,
    check_shapes,
    first_line,
    load_weights,
    read_shapes,
    read_weights,
    write_weights,
)

FORMAT = 1
"""Version of config.json; newer versions are rejected."""

OCCLUSION_KIND = "occlusion head"
"""Value of `kind` in the config.json of an occlusion head, which is not a model."""

MIN_SIDE, MAX_SIDE = 2, 16384
"""Minimum and maximum side in pixels of `test_size`; PyTorch cannot resize an image to a single pixel."""


@dataclass
class SavedModel:
    """Model with its metadata.

    Attributes:
        model: network.
        categories: categories that it predicts.
        test_size: (short, long) side in pixels that images are resized to.
        method, fusion: fusion rule and thresholds.
        data: name of the data set it was trained on.
        metrics: metrics on the validation split of that data set, name -> value, e.g. {"PQ": 0.44}.
    """

    model: PanopticModel
    categories: Categories
    test_size: tuple[int, int] = (800, 1333)
    method: Method = "heuristic"
    fusion: FusionConfig = field(default_factory=FusionConfig)
    data: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)


def save_model(folder: str | Path, saved: SavedModel, half: bool = False) -> None:
    """Write `model.safetensors` and `config.json` into a new or replaced folder, atomically.

    Args:
        folder: path of the model folder.
        saved: model and metadata.
        half: whether to store weights as float16 (half the size; `load_model` returns float32).
    """
    with atomic_folder(folder) as temporary:
        write_weights(temporary / "model.safetensors", saved.model.state_dict(), half)
        write_description(temporary / "config.json", saved)


def write_description(path: Path, saved: SavedModel) -> None:
    """Write the config.json that `load_model` reads."""
    description = {
        "format": FORMAT,
        "model": to_mapping(saved.model.config),
        "categories": saved.categories.to_json(),
        "test_size": list(saved.test_size),
        "method": saved.method,
        "fusion": to_mapping(saved.fusion),
        "data": saved.data,
        "metrics": saved.metrics,
    }
    write_json(path, description, indent=1)


def load_model(source: str | Path) -> SavedModel:
    """Load a model by name, from a folder, or from a weight file that `refine convert` supports.

        saved = refine.load_model("nuclei")
        predictor = refine.Predictor(saved, device="cuda")

    Args:
        source: see `find_model`. A checkpoint's `ema.safetensors` is loaded instead of `model.safetensors`.

    Returns:
        Model on the CPU, float32, in evaluation mode.

    Raises:
        RefineError: the model does not exist, a file is damaged, or the weights do not fit the config.
    """
    folder = find_model(source)
    if folder.suffix == ONNX:
        raise RefineError(f"{source}: an exported model has no weights that can be loaded; give the model folder")
    config, saved = _read_description(folder / "config.json")
    weights = _weights_file(folder)
    model = build_model(
        config, saved["categories"], read_shapes(weights), weights, f"{folder / 'config.json'}: model"
    )
    load_weights(model, weights)
    return SavedModel(model.eval(), **saved)


def _weights_file(folder: Path) -> Path:
    ema = folder / "ema.safetensors"
    return ema if ema.exists() else folder / "model.safetensors"


def _read_description(path: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """Read the config of the network and the other fields of `SavedModel` from a config.json."""
    description: Any = read_json(path)
    if isinstance(description, dict) and "model_type" in description and "format" not in description:
        raise RefineError(f"{path}: is a model of transformers; this command needs one of refine's own")
    if isinstance(description, dict) and description.get("kind") == OCCLUSION_KIND:
        raise RefineError(f"{path}: is an occlusion head, not a model; give it as --occlusion, beside a model")
    if not isinstance(description, dict) or not isinstance(description.get("format"), int):
        raise RefineError(f"{path}: has no `format`; give the folder of a model written by refine")
    if description["format"] > FORMAT:
        raise RefineError(f"{path}: format {description['format']} is newer than this refine; update refine")
    missing = {"model", "categories", "test_size", "method", "fusion"} - set(description)
    if missing:
        raise RefineError(f"{path}: field {sorted(missing)[0]!r} is missing; export the model again")
    description |= {name: description.get(name, default) for name, default in (("data", ""), ("metrics", {}))}
    for name, kind in (("model", dict), ("fusion", dict), ("metrics", dict), ("method", str), ("data", str)):
        if not isinstance(description[name], kind):
            expected = {dict: "a mapping", str: "a string"}[kind]
            raise RefineError(f"{path}: {name} is {description[name]!r:.40}, expected {expected}; correct it")
    size = description["test_size"]
    sides = size if isinstance(size, list) else []
    if len(sides) != 2 or not all(type(side) is int and MIN_SIDE <= side <= MAX_SIDE for side in sides):
        raise RefineError(
            f"{path}: test_size is {size!r:.60}, expected [short, long] px, {MIN_SIDE} to {MAX_SIDE}; correct it"
        )
    try:
        config = from_mapping(ModelConfig, description["model"], f"{path}: model")
        fusion = from_mapping(FusionConfig, description["fusion"], f"{path}: fusion")
    except (RecursionError, OverflowError) as error:
        raise RefineError(f"{path}: model or fusion: {first_line(error)}; export the model again") from error
    return config, {
        "categories": Categories.from_json(description["categories"], str(path)),
        "test_size": (sides[0], sides[1]),
        "method": description["method"],
        "fusion": fusion,
        "data": description["data"],
        "metrics": description["metrics"],
    }


def build_model(
    config: ModelConfig,
    categories: Categories,
    shapes: Shapes,
    weights: object,
    source: str,
    optional: Iterable[str] = (),
) -> PanopticModel:
    """Build a network for given weights, after checking that they fit without allocating it.

    Args:
        config: config of the network, possibly with invalid sizes.
        categories: categories that it predicts.
        shapes: shapes of the weights by name.
        weights: source of the weights, for error messages.
        source: file and field of the config, for error messages.
        optional: prefixes of names of weights that may be missing, see `fit_weights`.

    Returns:
        Network with random weights.

    Raises:
        RefineError: the network cannot be built, or the weights do not fit it.
    """
    things, classes, parts = categories.num_things, len(categories), config.ibpp
    layers = len(config.box_head.ious) * (config.box_head.num_convs + config.box_head.num_fcs)
    heads = 1 if parts.shared else max(parts.iterations, 1)
    layers += config.rpn.num_convs + heads * config.mask_head.num_convs
    layers += heads * parts.sem_convs if parts.iterations else 0
    if layers > len(shapes):
        raise RefineError(
            f"{source}: requires {layers} layers, but {weights} contains {len(shapes)} tensors; use the config of "
            f"that model"
        )
    try:
        with shapes_only():
            planned = PanopticModel(config, things, classes)
    except RefineError as error:
        raise RefineError(f"{source}: {error}") from error
    except (
        ArithmeticError,
        AssertionError,
        LookupError,
        RuntimeError,
        StopIteration,
        TypeError,
        ValueError,
    ) as error:
        raise RefineError(f"{source}: the network cannot be built ({first_line(error)}); correct it") from error
    check_shapes({k: v.shape for k, v in planned.state_dict().items()}, shapes, weights, optional)
    return PanopticModel(config, things, classes)


def load_matching(model: torch.nn.Module, folder: Path) -> list[str]:
    """Initialise a model from another that may have different classes or parts, or fewer iterations.

    Heads of iterations that the other model does not have are initialised from those of its last iteration; the
    mask head of a Panoptic-FPN, for example, initialises that of every iteration.

    Args:
        model: model to initialise; tensors without a counterpart of the same name and shape stay unchanged.
        folder: folder of the other model, see `find_model`.

    Returns:
        Names of the tensors that stayed unchanged, except those without elements.

    Raises:
        RefineError: no tensor fits.
    """
    path = _weights_file(folder)
    weights, own = read_weights(path), model.state_dict()
    weights |= _later_heads(weights, own)
    fitting = {k: v for k, v in weights.items() if k in own and own[k].shape == v.shape}
    check_kinds(fitting, own, path)
    if not fitting:
        raise RefineError(f"init: no tensor of {path} fits the model; start from one of the same architecture")
    model.load_state_dict(fitting, strict=False)
    return [k for k in own if k not in fitting and own[k].numel()]


def _later_heads(weights: Mapping[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
    """Return the tensors of IBPP heads that are missing in `weights`, from the last iteration that it has."""
    found: dict[str, Tensor] = {}
    for name in wanted:
        match = re.fullmatch(r"(ibpp\.(?:mask|semantic)_heads)\.(\d+)\.(.+)", name)
        if match and name not in weights:
            heads, t, rest = match.groups()
            known = [k for n in range(int(t)) if (k := f"{heads}.{n}.{rest}") in weights]
            if known:
                found[name] = weights[known[-1]]
    return found
