"""A training run, from its config to a folder of checkpoints; the same on one process or many.

refine train --config configs/nuclei.yaml
torchrun --nproc_per_node 8 --nnodes 2 … -m refine.cli.main train --config configs/nuclei.yaml
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor

from refine.checkpoint.find import find_model
from refine.checkpoint.folder import SavedModel, load_matching
from refine.data.build import build_dataset
from refine.errors import RefineError
from refine.files import read_json
from refine.inference.evaluate import evaluate
from refine.inference.predictor import Predictor, check_method
from refine.modeling.model import PanopticModel
from refine.modeling.pretrained import load_pretrained
from refine.runtime import Processes, processes
from refine.structures import Categories
from refine.training.batches import training_parts
from refine.training.config import RunConfig, check_run
from refine.training.logs import RunLog
from refine.training.state import clean, last_checkpoint, restore_state, save_state
from refine.training.update import TrainingModule


def train(config: RunConfig, resume: bool = False, deadline: float | None = None) -> Path:
    """Train a model; under torchrun, together with the other processes.

    SIGTERM (and Ctrl-C) end the run after the current update, with a checkpoint.

    Args:
        config: of the run.
        resume: go on from the last checkpoint in `config.out`, or start if there is none yet.
        deadline: of `time.monotonic()`; the run ends after it as if told to stop.

    Returns:
        The last checkpoint's folder.

    Raises:
        RefineError: a config or data set that cannot be used, a run in the way, or a loss that is not
            finite.
    """
    check_run(config)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    last = last_checkpoint(config.out)
    if last is not None and not resume:
        raise RefineError(f"{config.out}: holds a run already; resume it (--resume) or name another --out")
    with processes(config.device) as group, _stop_signals() as stop:
        return _Run(config, group, last).run(stop, deadline)


class _Run:
    """What one process of a run holds."""

    def __init__(self, config: RunConfig, group: Processes, last: Path | None) -> None:
        self.config, self.group = config, group
        self.dataset = build_dataset(config.data.train, "data.train")
        self.validation = build_dataset(config.data.val, "data.val") if config.data.val else None
        self.categories: Categories = self.dataset.categories
        if self.validation is not None:
            self.categories.check_equal(self.validation.categories, "data.train", "data.val")
        torch.manual_seed(config.seed)
        model = PanopticModel(config.model, self.categories.num_things, len(self.categories))
        if self.validation is not None:
            check_method(config.eval.method, model)
        if config.init is None and last is None:
            load_pretrained(model.backbone, config.model.backbone)
        fresh: list[str] = []
        if config.init is not None and last is None:
            fresh = load_matching(model, find_model(config.init))
            _check_frozen(fresh, config)
        self.module = TrainingModule(model.to(group.device), config, group)
        self.learner = self.module.learner
        if last is not None:
            restore_state(last, config, self.learner)
        if group.first:
            clean(config.out)
        step = self.learner.progress.step
        self.log = RunLog(config.out, config.log, step, config.optim.max_steps, group.first)
        self.log.message(step, self._greeting(last, fresh))
        self.saved_step = step if last is not None else -1
        measured = last is not None and bool(read_json(last / "config.json")["metrics"])
        self.measured_step = step if measured else 0

    def run(self, stop: threading.Event, deadline: float | None = None) -> Path:
        """Update until the end or until told to stop; returns the last checkpoint."""
        config, progress = self.config, self.learner.progress
        parts = training_parts(self.dataset, config, self.group, progress.step)
        meter = _Meter(self.group, config.optim.batch_size)
        with self.log:
            self._evaluate_if_due()  # where a stop came before it
            while progress.step < config.optim.max_steps:
                began = time.perf_counter()
                batch = next(parts)
                loaded = time.perf_counter()
                losses = self.module.update(batch)
                meter.add(losses, loaded - began, time.perf_counter() - loaded)
                self.log.advance(progress.step)
                if progress.step % config.log.every == 0 or progress.step == config.optim.max_steps:
                    self.log.scalars(progress.step, "train", meter.take())
                over = deadline is not None and time.monotonic() > deadline
                (stopped,) = self.group.any(stop.is_set() or over)
                if stopped:
                    self.log.message(progress.step, f"told to stop at step {progress.step}: checkpoint written")
                    break
                self._evaluate_if_due()
                if progress.step % config.log.checkpoint_every == 0:
                    self._save({})
            return self._save({})

    def _evaluate_if_due(self) -> None:
        """Measure PQ every `eval.every` updates and at the end, and save what was measured."""
        config, progress = self.config, self.learner.progress
        every = config.eval.every
        due = progress.step == config.optim.max_steps or (every > 0 and progress.step % every == 0)
        if self.validation is None or not due or self.measured_step == progress.step:
            return
        saved = self._describe({})
        result = evaluate(
            Predictor(saved, device=self.group.device, precision=config.optim.precision),
            self.validation,
            group=self.group,
            max_images=config.eval.max_images,
            pictures=config.eval.pictures if config.log.tensorboard else 0,
            workers=config.workers,
        )
        self.log.scalars(progress.step, "val", result.metrics)
        self.log.pictures(progress.step, result.pictures)
        if result.metrics["PQ"] > progress.best.get("PQ", -1.0):
            progress.best = {"step": progress.step, "PQ": result.metrics["PQ"]}
        self.measured_step = progress.step
        self._save(result.metrics)

    def _save(self, metrics: dict[str, float]) -> Path:
        """Write a checkpoint of the current step, unless there is one; with metrics, in its place."""
        step = self.learner.progress.step
        if self.group.first and (metrics or self.saved_step != step):
            save_state(self.config, self.learner, self._describe(metrics))
        self.saved_step = step
        self.group.wait()
        folder = last_checkpoint(self.config.out)
        assert folder is not None, "a checkpoint was just written"
        return folder

    def _describe(self, metrics: dict[str, float]) -> SavedModel:
        config = self.config
        return SavedModel(
            self.learner.evaluated,  # type: ignore[arg-type]  # the same class as the model
            self.categories,
            test_size=(config.eval.short, config.eval.long),
            method=config.eval.method,
            fusion=config.eval.fusion,
            data=config.data.name,
            metrics=metrics,
        )

    def _greeting(self, last: Path | None, fresh: list[str]) -> str:
        config = self.config
        parameters = sum(p.numel() for p in self.learner.model.parameters())
        weights = config.model.backbone.weights
        fresh_start = f"{weights} backbone" if weights else "random weights"
        start = f"resumed from {last}" if last else f"started from {config.init or fresh_start}"
        if fresh:
            start += f" ({len(fresh)} tensors of other shape or name start anew, first {fresh[0]})"
        return (
            f"{parameters / 1e6:.1f} M parameters, {len(self.dataset)} images, {self.categories}, "
            f"{self.group.count} process(es) on {self.group.device.type}; {start}"
        )


def _check_frozen(fresh: list[str], config: RunConfig) -> None:
    """Tensors that neither `init` gives nor training changes would stay random."""
    trained = tuple(config.optim.train_only)
    left = [name for name in fresh if not name.startswith(trained)] if trained else []
    if left:
        raise RefineError(
            f"init: {config.init} lacks {len(left)} tensors of the model, first {left[0]}, which optim.train_only "
            f"{config.optim.train_only} would leave at random numbers; give `model` as that checkpoint has it"
        )


class _Meter:
    """Means of losses and of times between two lines of the log."""

    def __init__(self, group: Processes, batch_size: int) -> None:
        self.group, self.batch_size = group, batch_size
        self._clear()

    def _clear(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.data_time = self.compute_time = 0.0
        self.updates = 0

    def add(self, values: dict[str, Tensor], data_time: float, compute_time: float) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach()
        self.data_time += data_time
        self.compute_time += compute_time
        self.updates += 1

    def take(self) -> dict[str, float]:
        """Means over the updates and processes so far; starts anew."""
        totals = self.group.sum(torch.stack([v.float() for v in self.sums.values()]))
        means = (totals / (self.updates * self.group.count)).tolist()
        values = dict(zip(self.sums, means, strict=True))
        values["images_per_second"] = self.updates * self.batch_size / (self.data_time + self.compute_time)
        values["data_seconds"] = self.data_time / self.updates
        values["compute_seconds"] = self.compute_time / self.updates
        self._clear()
        return values


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """Set an event on the first SIGTERM or Ctrl-C; a second one acts as usual."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may handle signals
        return
    signals: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGINT)
    before = {s: signal.getsignal(s) for s in signals}

    def handle(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(number, before[signal.Signals(number)])

    for s in signals:
        signal.signal(s, handle)
    try:
        yield stop
    finally:
        for s in signals:
            signal.signal(s, before[s])
