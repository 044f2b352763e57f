"""Checkpoints of a training run, which resume bit for bit.

OUT/checkpoints/step_000500/
    model.safetensors, ema.safetensors   weights, and their moving average
    config.json                          description of the model, for `load_model`
    trainer.safetensors                  tensors of the optimizer, as PARAMETER/KEY
    state.json                           step, loss scale, number of EMA updates, best PQ of earlier steps
    run.json                             config of the run
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from refine.checkpoint.folder import SavedModel, write_description
from refine.config import from_mapping, to_mapping
from refine.errors import RefineError
from refine.files import read_json, write_json
from refine.folders import atomic_folder
from refine.tensors import load_weights, read_weights, write_weights
from refine.training.config import RunConfig
from refine.training.run_folder import best_checkpoint, checkpoint_path, update_pointers

FIXED = ("model", "augment", "seed")
"""Config sections that must not change on resumption; nor may data.name, optim.batch_size and optim.name. Paths of
the data may change, because a run may be resumed on another machine."""

MEASURED = ("short", "long", "max_images", "method", "fusion")
"""Fields of `eval` on which PQ depends."""


@dataclass
class Progress:
    """Progress of a run.

    Order, augmentation and sampling are functions of the seed and the step, so that the step also determines the
    state of the data loader and of every random generator.

    Attributes:
        step: number of completed updates.
        best: {"step": …, "PQ": …} of the best evaluation so far, or empty.
    """

    step: int = 0
    best: dict[str, float] = field(default_factory=dict)


@dataclass
class Learner:
    """Mutable state of a training run.

    Attributes:
        model: trained network.
        optimizer: optimizer over `parameter_groups`.
        ema: exponential moving average of the weights, or None.
        scaler: loss scaler for fp16; disabled otherwise.
        progress: step and best evaluation.
    """

    model: nn.Module
    optimizer: Optimizer
    ema: AveragedModel | None
    scaler: torch.amp.GradScaler
    progress: Progress

    @property
    def evaluated(self) -> nn.Module:
        """Network to evaluate and ship: the moving average if there is one."""
        return self.model if self.ema is None else self.ema.module


def save_state(config: RunConfig, learner: Learner, saved: SavedModel) -> Path:
    """Write OUT/checkpoints/step_N atomically, update OUT/last, and remove old checkpoints.

    Args:
        config: config of the run.
        learner: state to save.
        saved: description of the model (categories, test size).

    Returns:
        Folder of the checkpoint.
    """
    progress = learner.progress
    folder = checkpoint_path(config.out, progress.step)
    with atomic_folder(folder) as temporary:
        write_weights(temporary / "model.safetensors", learner.model.state_dict())
        if learner.ema is not None:
            write_weights(temporary / "ema.safetensors", learner.ema.module.state_dict())
        write_description(temporary / "config.json", saved)
        write_weights(temporary / "trainer.safetensors", _optimizer_tensors(learner.optimizer))
        state = {
            "step": progress.step,
            "best": progress.best,
            "scaler": learner.scaler.state_dict(),
            "ema_updates": 0 if learner.ema is None else int(learner.ema.n_averaged),
        }
        write_json(temporary / "state.json", state, indent=1)
        write_json(temporary / "run.json", to_mapping(config), indent=1)
    update_pointers(config.out, progress.best, config.log.keep)
    return folder


def restore_state(folder: Path, config: RunConfig, learner: Learner) -> None:
    """Load a checkpoint into a newly built learner.

    Raises:
        RefineError: the checkpoint is damaged, or its run had another config.
    """
    _check_same_run(folder / "run.json", config)
    state = read_json(folder / "state.json")
    tensors = read_weights(folder / "trainer.safetensors")
    load_weights(learner.model, folder / "model.safetensors")
    if learner.ema is not None:
        load_weights(learner.ema.module, folder / "ema.safetensors")
        learner.ema.n_averaged.fill_(state["ema_updates"])
    _load_optimizer(learner.optimizer, tensors)
    if learner.scaler.is_enabled() and state["scaler"]:  # empty if the run had another precision until then
        learner.scaler.load_state_dict(state["scaler"])
    learner.progress = Progress(state["step"], best_checkpoint(config.out, state["best"]))


def _optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def _load_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Map names to torch's parameter numbers; torch casts the tensors and moves them to the device."""
    by_name: dict[str, dict[str, Tensor]] = {}
    for path, value in tensors.items():
        name, key = path.rsplit("/", 1)
        by_name.setdefault(name, {})[key] = value
    names = [name for group in optimizer.param_groups for name in group["names"]]
    state: dict[int, dict[str, Any]] = {i: by_name[n] for i, n in enumerate(names) if n in by_name}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def changed_evaluation(folder: Path, config: RunConfig) -> list[str]:
    """Return the fields of `eval` that change PQ and had other values when a checkpoint was written."""
    now, then = to_mapping(config)["eval"], _config_of(folder / "run.json")["eval"]
    return [f"eval.{key}" for key in MEASURED if then[key] != now[key]]


def _config_of(path: Path) -> dict[str, Any]:
    """Read the config of a run; fields added since then count as defaults."""
    return to_mapping(from_mapping(RunConfig, read_json(path), str(path)))


def _check_same_run(path: Path, config: RunConfig) -> None:
    """Raise RefineError if the run had another config."""
    now, then = to_mapping(config), _config_of(path)
    differing = [key for key in FIXED if then[key] != now[key]]
    differing += ["data.name"] if then["data"]["name"] != now["data"]["name"] else []
    differing += [f"optim.{k}" for k in ("batch_size", "name") if then["optim"][k] != now["optim"][k]]
    differing += ["optim.ema"] if (then["optim"]["ema"] is None) != (now["optim"]["ema"] is None) else []
    if differing:
        raise RefineError(
            f"{path}: the run had another {differing[0]}; resume with its own config, or choose another --out"
        )
