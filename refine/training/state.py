"""Checkpoints of a training run, from which it goes on bit for bit.

OUT/checkpoints/step_000500/
    model.safetensors, ema.safetensors   weights, and their running mean
    config.json                          makes the folder a model that `load_model` reads
    trainer.safetensors                  tensors of the optimizer, as PARAMETER/KEY
    state.json                           step, loss scale, updates of the mean, best PQ of earlier steps
    run.json                             the run's config
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from refine.checkpoint.folder import SavedModel, atomic_folder, write_description
from refine.config import from_mapping, to_mapping
from refine.errors import RefineError
from refine.files import read_json, write_json
from refine.tensors import load_weights, read_weights, write_weights
from refine.training.config import RunConfig
from refine.training.run_folder import best_checkpoint, checkpoint_path, update_pointers

FIXED = ("model", "augment", "seed")
"""Parts of the config that a run may not change half-way; nor data.name, optim.batch_size and optim.name. Where
the data lie may change, for a run may go on on another machine."""


@dataclass
class Progress:
    """How far a run has come.

    Order, augmentation and sampling are functions of the seed and the step, so the step is also the position
    of the data loader and of every random generator.

    Attributes:
        step: updates done.
        best: {"step": …, "PQ": …} of the best evaluation so far, or empty.
    """

    step: int = 0
    best: dict[str, float] = field(default_factory=dict)


@dataclass
class Learner:
    """Everything that a training run changes.

    Attributes:
        model: the trained weights.
        optimizer: its groups have `names`, see `parameter_groups`.
        ema: running mean of the weights, or None.
        scaler: of the loss, under fp16; disabled otherwise.
        progress: how far it has come.
    """

    model: nn.Module
    optimizer: Optimizer
    ema: AveragedModel | None
    scaler: torch.amp.GradScaler
    progress: Progress

    @property
    def evaluated(self) -> nn.Module:
        """The weights to evaluate and ship: the running mean, if there is one."""
        return self.model if self.ema is None else self.ema.module


def save_state(config: RunConfig, learner: Learner, saved: SavedModel) -> Path:
    """Write OUT/checkpoints/step_N atomically, point OUT/last at it, drop old ones.

    Args:
        config: of the run.
        learner: what is saved.
        saved: describes the model (categories, test size).

    Returns:
        The checkpoint's folder.
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
    """Bring a freshly built learner to a checkpoint.

    Raises:
        RefineError: the checkpoint is damaged, or comes from a run with another config.
    """
    _check_same_run(folder / "run.json", config)
    state = read_json(folder / "state.json")
    tensors = read_weights(folder / "trainer.safetensors")
    load_weights(learner.model, folder / "model.safetensors")
    if learner.ema is not None:
        load_weights(learner.ema.module, folder / "ema.safetensors")
        learner.ema.n_averaged.fill_(state["ema_updates"])
    _load_optimizer(learner.optimizer, tensors)
    if learner.scaler.is_enabled():
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
    """Torch's own loading does the casting and placing; here only names become its numbers."""
    by_name: dict[str, dict[str, Tensor]] = {}
    for path, value in tensors.items():
        name, key = path.rsplit("/", 1)
        by_name.setdefault(name, {})[key] = value
    names = [name for group in optimizer.param_groups for name in group["names"]]
    state: dict[int, dict[str, Any]] = {i: by_name[n] for i, n in enumerate(names) if n in by_name}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _check_same_run(path: Path, config: RunConfig) -> None:
    """Refuse what cannot go on; fields that configs got since then had their defaults."""
    now, then = to_mapping(config), to_mapping(from_mapping(RunConfig, read_json(path), str(path)))
    differing = [key for key in FIXED if then[key] != now[key]]
    differing += ["data.name"] if then["data"]["name"] != now["data"]["name"] else []
    differing += [f"optim.{k}" for k in ("batch_size", "name") if then["optim"][k] != now["optim"][k]]
    differing += ["optim.ema"] if (then["optim"]["ema"] is None) != (now["optim"]["ema"] is None) else []
    if differing:
        raise RefineError(
            f"{path}: the run had another {differing[0]}; resume with its own config, or name another --out"
        )
