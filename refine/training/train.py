"""Training run, from its config to a folder of checkpoints, on one process or many.

refine train --config nuclei
torchrun --nproc_per_node 8 --nnodes 2 … -m refine train --config nuclei
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict
from pathlib import Path

import torch

from refine.checkpoint.folder import SavedModel
from refine.data.build import build_dataset
from refine.data.loader import PanopticDataset
from refine.data.workers import worker_failures
from refine.errors import RefineError, WriteError, counted, is_out_of_memory
from refine.files import read_json
from refine.fusion.config import check_method
from refine.inference.drawings import Drawings
from refine.inference.evaluate import Evaluation, evaluate
from refine.inference.measures import Quality
from refine.inference.predictor import Predictor
from refine.modeling.model import PanopticModel
from refine.runtime import Processes, prepare_cpu, processes
from refine.structures import Categories
from refine.training.batches import training_parts
from refine.training.config import RunConfig, check_run, fusion_heads, load_run
from refine.training.initial import initialise
from refine.training.logs import RunLog
from refine.training.meter import Meter
from refine.training.run_folder import (
    best_checkpoint,
    checkpoint_path,
    last_checkpoint,
    read_metrics,
    recover,
    run_lock,
    update_pointers,
    write_metrics,
)
from refine.training.state import changed_evaluation, restore_state, save_state
from refine.training.stop import Stop, stop_signals
from refine.training.update import TrainingModule, too_large


def train(
    config: RunConfig | str | Path,
    resume: bool = False,
    deadline: float | None = None,
    stop: Stop | None = None,
    overrides: Sequence[str] = (),
) -> Path:
    """Train a model; under torchrun, together with the other processes.

    SIGTERM and Ctrl-C end the run after the current update, with a checkpoint.

        refine.train("nuclei", overrides=["--data.train.images=images", …, "--out=runs/mine"])

    Args:
        config: config of the run, or its YAML file.
        resume: whether to continue from the last checkpoint in `config.out`; without one, a new run starts.
        deadline: value of `time.monotonic()` after which the run stops with a checkpoint.
        stop: result of `stop_signals`, which records whether a signal ended the run; None handles signals here.
        overrides: overrides for the fields of a YAML file, such as "--data.val=null".

    Returns:
        Folder of the last checkpoint.

    Raises:
        RefineError: the config or data set is invalid, the folder holds another run or one in progress, a loss is
            not finite, a file cannot be written, or an evaluation failed; checkpoints are kept.
    """
    if not isinstance(config, RunConfig):
        config = load_run(config, overrides)
    check_run(config)
    prepare_cpu(config.threads)
    with (
        processes(config.device) as group,
        stop_signals() if stop is None else nullcontext(stop) as request,
        run_lock(config.out) if group.first else nullcontext(),
        worker_failures(),
    ):
        if group.first:
            recover(config.out, config.log.keep)
        group.wait()
        last = last_checkpoint(config.out)
        if last is not None and not resume:
            raise RefineError(f"{config.out}: holds a run already; resume it (--resume) or choose another --out")
        try:
            return _Run(config, group, last).run(request, deadline)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise too_large(config, group.count) from error
        except WriteError as error:
            kept = last_checkpoint(config.out)
            if kept is None:
                raise
            raise WriteError(f"{error}; checkpoint {kept} is kept; {_resume_hint(config.out)}") from error


def _resume_hint(out: str) -> str:
    return f"continue with: refine train --resume --out {shlex.quote(out)}"


class _Run:
    """State of a run in one process."""

    def __init__(self, config: RunConfig, group: Processes, last: Path | None) -> None:
        self.config, self.group = config, group
        self.dataset = build_dataset(config.data.train, "data.train.")
        self.validation = build_dataset(config.data.val, "data.val.") if config.data.val else None
        self.categories: Categories = self.dataset.categories
        if self.validation is not None:
            self.categories.check_equal(self.validation.categories, "data.train", "data.val")
        torch.manual_seed(config.seed)
        model = PanopticModel(config.model, self.categories.num_things, len(self.categories))
        if self.validation is not None:
            check_method(config.eval.method, fusion_heads(config.model))
        fresh = initialise(model, config, self.categories) if last is None else []
        self.module = TrainingModule(model.to(group.device), config, group)
        self.learner = self.module.learner
        if last is not None:
            path = last / "config.json"
            was = Categories.from_json(read_json(path)["categories"], str(path))
            was.check_equal(self.categories, f"the run {config.out}", "data.train")
            restore_state(last, config, self.learner)
        changed = changed_evaluation(last, config) if last is not None and self.learner.progress.best else []
        step = self.learner.progress.step
        measured = last is not None and bool(read_metrics(last))
        self.measured_step = step if measured else 0
        self.saved_step = step if last is not None else -1
        self.log = RunLog(
            config.out, config.log, step, config.optim.max_steps, group.first, measured, asdict(config)
        )
        self.log.message(step, self._start_message(last, fresh))
        if changed:
            self.log.message(step, f"{', '.join(changed)} changed: the best checkpoint is chosen among PQ of both")

    def run(self, stop: Stop, deadline: float | None = None) -> Path:
        """Train until the last update, a stop request or the deadline; return the last checkpoint."""
        config, progress = self.config, self.learner.progress
        meter = Meter(self.group, config.optim.batch_size)
        with self.log, closing(training_parts(self.dataset, config, self.group, progress.step)) as parts:
            if not self._evaluate_if_due() and self._finished:  # an earlier stop may have preceded it
                self.log.message(progress.step, self._nothing_left())
            while not self._finished:
                began = time.perf_counter()
                batch = next(parts)
                loaded = time.perf_counter()
                losses = self.module.update(batch)
                meter.add(losses, loaded - began, time.perf_counter() - loaded)
                self.log.advance(progress.step)
                if progress.step % config.log.every == 0 or self._finished:
                    self.log.scalars(progress.step, "train", meter.take())
                if self._stopped(stop, deadline):
                    break
                if progress.step % config.log.checkpoint_every == 0:
                    self._save()
                if self._evaluate_if_due() and not self._finished and self._stopped(stop, deadline):
                    break
            return self._save()

    @property
    def _finished(self) -> bool:
        return self.learner.progress.step >= self.config.optim.max_steps

    def _stopped(self, stop: Stop, deadline: float | None) -> bool:
        """Return whether any process must stop; if so, write a checkpoint."""
        over = deadline is not None and time.monotonic() > deadline
        (stopped,) = self.group.any(stop.signal is not None or over)
        if stopped:
            self._save()
            step = stop.step = self.learner.progress.step
            most = self.config.optim.max_steps
            self.log.message(step, f"stopped at step {step} of {most}; {_resume_hint(self.config.out)}")
        return stopped

    def _nothing_left(self) -> str:
        step, most = self.learner.progress.step, self.config.optim.max_steps
        return (
            f"{self.config.out}: is finished at step {step} (optim.max_steps is {most}); nothing was trained. "
            f"Give a higher --optim.max_steps to continue"
        )

    def _evaluate_if_due(self) -> bool:
        """Evaluate PQ if due: every `eval.every` updates and at the end; return whether it was due."""
        step, every = self.learner.progress.step, self.config.eval.every
        due = self._finished or (every > 0 and step % every == 0)
        if self.validation is None or not due or self.measured_step == step:
            return False
        folder = self._save()  # first, so that nothing is lost if the evaluation fails
        try:
            result = self._evaluate(self.validation)
        except (RefineError, MemoryError, RuntimeError) as error:
            reason = str(error)
            if is_out_of_memory(error):
                short, long = self.config.eval.short, self.config.eval.long
                reason = f"not enough memory; lower eval.short (now {short}) and eval.long (now {long})"
            elif not isinstance(error, RefineError):
                raise
            raise RefineError(
                f"evaluation at step {step} failed: {reason}; checkpoint {folder} is kept; "
                f"{_resume_hint(self.config.out)}"
            ) from error
        self.log.scalars(step, "val", result.metrics)
        self.log.images(step, result[Drawings].drawn)
        if self.group.first:
            write_metrics(folder, result.metrics)
            self.learner.progress.best = best_checkpoint(self.config.out, self.learner.progress.best)
            update_pointers(self.config.out, self.learner.progress.best, self.config.log.keep)
        self.measured_step = step
        self.group.wait()
        return True

    def _evaluate(self, validation: PanopticDataset) -> Evaluation:
        config = self.config
        return evaluate(
            Predictor(self._describe(), device=self.group.device, precision=config.optim.precision),
            validation,
            measures=[Quality(), Drawings(config.eval.pictures if config.log.tensorboard else 0)],
            group=self.group,
            max_images=config.eval.max_images,
            workers=config.workers,
        )

    def _save(self) -> Path:
        """Write a checkpoint of the current step unless there is one; return its folder."""
        step = self.learner.progress.step
        if self.group.first and self.saved_step != step:
            save_state(self.config, self.learner, self._describe())
        self.saved_step = step
        self.group.wait()
        return checkpoint_path(self.config.out, step)

    def _describe(self) -> SavedModel:
        config = self.config
        return SavedModel(
            self.learner.evaluated,  # type: ignore[arg-type]  # the same class as the model
            self.categories,
            test_size=(config.eval.short, config.eval.long),
            method=config.eval.method,
            fusion=config.eval.fusion,
            data=config.data.name,
        )

    def _start_message(self, last: Path | None, fresh: list[str]) -> str:
        config = self.config
        parameters = sum(p.numel() for p in self.learner.model.parameters())
        weights = config.model.backbone.weights
        fresh_start = f"{weights} backbone" if weights else "random weights"
        start = f"resumed from {last}" if last else f"started from {config.init or fresh_start}"
        if fresh:
            number = counted(len(fresh), "tensor")
            start += f" (initialised randomly: {number} of another shape or name, first {fresh[0]})"
        return (
            f"{parameters / 1e6:.1f} M parameters, {counted(len(self.dataset), 'image')}, {self.categories}, "
            f"{counted(self.group.count, 'process', 'processes')} on {self.group.device.type}; {start}"
        )
