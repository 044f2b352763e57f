"""Models on disk: a folder of weights (safetensors) and everything needed to use them (config.json).

No file holds pickled code, and a folder is either whole or absent.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from refine.config import from_mapping, to_mapping
from refine.errors import RefineError
from refine.files import read_json, write_bytes, write_error, write_json
from refine.fusion.config import FusionConfig, Method
from refine.modeling.config import ModelConfig
from refine.modeling.model import PanopticModel
from refine.structures import Categories

FORMAT = 1
"""Of config.json; a reader refuses newer ones."""

SHIPPED = Path(__file__).resolve().parents[1] / "weights"
"""Folder of the models that come with the package, one folder each."""


@dataclass
class SavedModel:
    """A model and what belongs to it.

    Attributes:
        model: the network.
        categories: what it tells apart.
        test_size: (short, long) side in pixels that images are resized to.
        method, fusion: rule of fusion and its thresholds.
        data: name of the data set it was trained on.
        metrics: measured on that set's validation split, name -> value, e.g. {"PQ": 0.44}.
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
        folder: of the model.
        saved: what to write.
        half: store weights as float16 (half the size; `load_model` gives float32 back).
    """
    with atomic_folder(folder) as temporary:
        write_weights(temporary / "model.safetensors", saved.model.state_dict(), half)
        write_description(temporary / "config.json", saved)


def write_weights(path: Path, weights: Mapping[str, Tensor], half: bool = False) -> None:
    """Write a state dict as safetensors; `half` stores its floats as float16."""
    tensors = {
        name: (t.half() if half and t.is_floating_point() else t).detach().cpu().contiguous().clone()
        for name, t in weights.items()
    }
    write_bytes(path, save(tensors))


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
    """Load a model from a shipped name, an exported folder, or a training run or checkpoint.

    Args:
        source: name of a shipped model; or a folder with config.json and weights (`ema.safetensors`, where a
            checkpoint has it, goes before `model.safetensors`); or a run's folder, whose best checkpoint is
            taken, or its last if none was measured; or "hf://OWNER/NAME" for one on the Hugging Face Hub.

    Returns:
        The model on the CPU, in evaluation mode, float32.

    Raises:
        RefineError: no such model, a damaged file, or weights that do not fit the config.
    """
    folder = find_model(source)
    path = folder / "config.json"
    description = read_json(path)
    if not isinstance(description, dict) or not isinstance(description.get("format"), int):
        raise RefineError(f"{path}: has no `format`; give the folder of a model written by refine")
    if description["format"] > FORMAT:
        raise RefineError(f"{path}: format {description['format']} is newer than this refine; update refine")
    missing = {"model", "categories", "test_size", "method", "fusion"} - set(description)
    if missing:
        raise RefineError(f"{path}: field {sorted(missing)[0]!r} is missing; export the model again")
    for name in ("model", "fusion"):
        if not isinstance(description[name], dict):
            raise RefineError(f"{path}: {name} is no mapping; export the model again")
    match description["test_size"]:
        case [int() as short, int() as long] if min(short, long) > 0:
            pass
        case size:
            raise RefineError(f"{path}: test_size is {size!r}, expected [short, long] in pixels; correct it")
    config = from_mapping(ModelConfig, description["model"], f"{path}: model")
    categories = Categories.from_json(description["categories"], str(path))
    # All weights follow, so none are fetched for the backbone.
    without = replace(config, backbone=replace(config.backbone, weights=None))
    try:
        model = PanopticModel(without, categories.num_things, len(categories))
    except RefineError as error:
        raise RefineError(f"{path}: model: {error}") from error
    model.config = config
    ema = folder / "ema.safetensors"
    load_weights(model, ema if ema.exists() else folder / "model.safetensors")
    return SavedModel(
        model.eval(),
        categories,
        test_size=(short, long),
        method=description["method"],
        fusion=from_mapping(FusionConfig, description["fusion"], f"{path}: fusion"),
        data=description.get("data", ""),
        metrics=description.get("metrics", {}),
    )


def find_model(source: str | Path) -> Path:
    """Folder of a model that `load_model` can name; raises RefineError if there is none."""
    if str(source).startswith("hf://"):
        return _from_hub(str(source).removeprefix("hf://"))
    for folder in (Path(source), SHIPPED / str(source)):
        if (folder / "config.json").is_file():
            return folder
        for pointer in (folder / "best", folder / "last"):
            if pointer.is_file():
                return folder / "checkpoints" / pointer.read_text(encoding="utf-8").strip()
    raise RefineError(
        f"{source}: no such model; give a folder with config.json, a run's folder, or one of the shipped "
        f"models ({', '.join(shipped_models()) or 'none installed'})"
    )


def shipped_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))


def push_model(source: str | Path, repository: str, private: bool = False) -> None:
    """Upload a model to the Hugging Face Hub as OWNER/NAME; `load_model("hf://OWNER/NAME")` gets it back."""
    from huggingface_hub import HfApi

    saved = load_model(source)
    api = HfApi()
    api.create_repo(repository, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        save_model(Path(temporary) / "model", saved)
        api.upload_folder(repo_id=repository, folder_path=Path(temporary) / "model")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on the CPU; raises RefineError if it is absent or damaged."""
    if not path.is_file():
        raise RefineError(f"{path}: no such file; give the folder of a whole model")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise RefineError(f"{path}: is damaged ({error}); copy or export the model again") from error


def load_weights(model: torch.nn.Module, path: Path) -> None:
    """Fill a model from a safetensors file; all of it or nothing.

    Raises:
        RefineError: the file lacks a tensor, has one too many, or one of another shape; names the first of
            each.
    """
    weights, own = read_weights(path), model.state_dict()
    problems = []
    if missing := [k for k in own if k not in weights]:
        problems.append(f"{len(missing)} tensors are missing, first {missing[0]}")
    if unexpected := [k for k in weights if k not in own]:
        problems.append(f"{len(unexpected)} do not belong to the model, first {unexpected[0]}")
    if reshaped := [k for k in own if k in weights and own[k].shape != weights[k].shape]:
        first = reshaped[0]
        problems.append(
            f"{len(reshaped)} have another shape, first {first}: {tuple(weights[first].shape)} in the file, "
            f"{tuple(own[first].shape)} in the model"
        )
    if problems:
        raise RefineError(f"{path}: does not fit the config: {'; '.join(problems)}; use the model's own config")
    model.load_state_dict({k: v.to(own[k].dtype) for k, v in weights.items()})


def load_matching(model: torch.nn.Module, folder: Path) -> list[str]:
    """Start a model from another that may have other classes or parts, or fewer iterations.

    Heads of iterations that the other does not have start as those of its last one: a Panoptic-FPN's one
    mask head as that of every iteration.

    Args:
        model: takes every tensor of the same name and shape; the others stay.
        folder: of a model, see `find_model`.

    Returns:
        Names of the tensors that stayed.

    Raises:
        RefineError: not a single tensor fits.
    """
    ema = folder / "ema.safetensors"
    path = ema if ema.exists() else folder / "model.safetensors"
    weights, own = read_weights(path), model.state_dict()
    weights |= _later_heads(weights, own)
    fitting = {k: v.to(own[k].dtype) for k, v in weights.items() if k in own and own[k].shape == v.shape}
    if not fitting:
        raise RefineError(f"init: no tensor of {path} fits the model; start from one of the same architecture")
    model.load_state_dict(fitting, strict=False)
    return [k for k in own if k not in fitting]


def _later_heads(weights: Mapping[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
    """Tensors of IBPP's heads that `weights` lacks, from the last iteration that it has."""
    found: dict[str, Tensor] = {}
    for name in wanted:
        match = re.fullmatch(r"(ibpp\.(?:mask|semantic)_heads)\.(\d+)\.(.+)", name)
        if match and name not in weights:
            heads, t, rest = match.groups()
            known = [k for n in range(int(t)) if (k := f"{heads}.{n}.{rest}") in weights]
            if known:
                found[name] = weights[known[-1]]
    return found


@contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a new folder beside `folder`; on success flush its files and let it take the place of `folder`.

    Raises:
        RefineError: the disk is full or may not be written.
    """
    folder = Path(folder)
    temporary = folder.with_name(f".{uuid.uuid4().hex[:8]}.{folder.name}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for path in temporary.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        if folder.exists():
            old = folder.with_name(f"{temporary.name}.old")
            folder.rename(old)
            temporary.rename(folder)
            shutil.rmtree(old)
        else:
            temporary.rename(folder)
    except OSError as error:
        raise write_error(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _from_hub(repository: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(repository, allow_patterns=["config.json", "model.safetensors"]))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise RefineError(f"hf://{repository}: cannot be fetched ({error}); check the name and access") from error
