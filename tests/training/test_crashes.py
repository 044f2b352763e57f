"""A run that is killed before any of its file operations resumes with the same result."""

import json
import os
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
import torch
from helpers.kill import run_until_killed
from helpers.tiny_run import tiny_run, write_dataset
from safetensors.torch import load_file

from refine.files import read_json
from refine.inference.drawings import Drawings
from refine.training import train as training
from refine.training.config import RunConfig
from refine.training.logs import read_log
from refine.training.run_folder import read_metrics
from refine.training.train import train
from refine.training.update import TrainingModule

WRITES = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "shutil.rmtree"}


class FakeEvaluation:
    """Evaluation whose PQ falls with the step, so that the best checkpoint is the first."""

    def __init__(self, step: int) -> None:
        self.metrics = {"PQ": 1.0 / step}

    def __getitem__(self, kind: type) -> Drawings:
        return Drawings(0)


def quick_update(self: TrainingModule, parts: object) -> dict[str, torch.Tensor]:
    """Change a weight as a function of the step alone."""
    progress = self.learner.progress
    progress.step += 1
    with torch.no_grad():
        next(self.learner.model.parameters()).fill_(progress.step)
    return {"loss": torch.tensor(1.0 / progress.step), "lr": torch.tensor(0.1)}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    run = tiny_run(write_dataset(tmp_path / "data", 1), tmp_path / "out")
    run.model.box_head.fc_channels = run.model.fpn_channels = run.model.semantic_head.channels = 8  # small files
    run.data.val = run.data.train
    run.optim.max_steps, run.optim.ema = 3, None
    run.log.checkpoint_every = run.log.keep = run.eval.every = 1
    step = [0]

    def update(self: TrainingModule, parts: object) -> dict[str, torch.Tensor]:
        losses = quick_update(self, parts)
        step[0] = self.learner.progress.step
        return losses

    def restore(folder: Path, *rest: object) -> None:
        real_restore(folder, *rest)  # type: ignore[arg-type]
        step[0] = read_json(folder / "state.json")["step"]

    real_restore = training.restore_state
    monkeypatch.setattr(TrainingModule, "update", update)
    monkeypatch.setattr(training, "restore_state", restore)
    monkeypatch.setattr(training, "training_parts", lambda *args: (None for _ in count()))
    monkeypatch.setattr(training, "Predictor", lambda *args, **kwargs: None)
    monkeypatch.setattr(os, "fsync", lambda file: None)
    monkeypatch.setattr(training, "evaluate", lambda *args, **kwargs: FakeEvaluation(step[0]))
    return run


def run_in_child(config: RunConfig, at: Callable[[int], bool], resume: bool = True) -> tuple[int, int]:
    """Train in a forked process that exits before the first file operation, counted from 1, that `at` selects.

    Returns:
        The exit code, and the number of file operations.
    """
    counted = Path(f"{config.out}.count")
    done = 0

    def kill(event: str, args: tuple) -> bool:
        nonlocal done
        if event not in WRITES or (event == "open" and not (args[2] or 0) & (os.O_WRONLY | os.O_RDWR)):
            return False
        inside = event in ("os.rmdir", "os.remove") or str(args[0]).startswith(config.out)
        if not inside or str(args[0]).startswith(str(counted)):
            return False
        done += 1
        return at(done)

    def work() -> None:
        train(config, resume=resume)
        counted.write_text(str(done))

    code = run_until_killed(work, kill)
    return code, int(counted.read_text()) if code == 0 else 0


def outcome(out: Path) -> dict[str, object]:
    """Return all outputs of a run except times."""
    log = read_log(out / "log.jsonl")
    checkpoints = {}
    for folder in sorted((out / "checkpoints").iterdir()):
        weights = load_file(folder / "model.safetensors")
        checkpoints[folder.name] = (
            next(iter(weights.values())).flatten()[0].item(),
            read_metrics(folder),
            json.loads((folder / "state.json").read_text()),
        )
    return {
        "checkpoints": checkpoints,
        "last": (out / "last").read_text().strip(),
        "best": (out / "best").read_text().strip(),
        "losses": [(line["step"], line["loss"]) for line in log if line["group"] == "train"],
        "PQ": [(line["step"], line["PQ"]) for line in log if line["group"] == "val"],
        "left": [path.name for path in out.rglob(".*") if path.name != ".lock"],
    }


@pytest.mark.parametrize("each", [5, pytest.param(1, marks=pytest.mark.slow)])  # two minutes
def test_killed_before_any_file_operation(each: int, config: RunConfig) -> None:
    out = Path(config.out)
    code, total = run_in_child(config, lambda done: False)
    assert code == 0
    assert total > 30
    whole = outcome(out)
    assert (whole["last"], whole["best"]) == ("step_000003", "step_000001")
    assert whole["PQ"] == [(1, 1.0), (2, 0.5), (3, 0.333333)]
    for number in range(1, total + 1, each):
        shutil.rmtree(out)
        assert run_in_child(config, lambda done, number=number: done == number)[0] == 137
        assert run_in_child(config, lambda done: False)[0] == 0, number
        assert outcome(out) == whole, number
