"""Configuration of a training run, read from YAML with dotted overrides.

    config = parse_run(["--config", "nuclei", "--optim.lr", "0.01"])

Errors name unknown fields and fields of the wrong type.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser

from refine.bounds import bounded, check_bounds
from refine.config import check_structure, field_errors
from refine.data.config import SMALLEST, AugmentConfig, DatasetConfig, check_dataset_fields
from refine.errors import RefineError
from refine.fusion.config import FusionConfig, Head, Method
from refine.modeling.config import ModelConfig
from refine.training.config_files import find_config, with_bases


@dataclass
class DataConfig:
    """Training and validation data.

    Attributes:
        train: training data set.
        val: data set on which PQ is evaluated during training; None disables evaluation.
        name: name of the data set, for the model card.
    """

    train: DatasetConfig = field(default_factory=DatasetConfig)
    val: DatasetConfig | None = None
    name: str = ""


@dataclass
class OptimConfig:
    """Optimizer, learning rate schedule and batch size.

    Attributes:
        name: SGD with momentum or AdamW.
        lr: learning rate after warm-up, for `reference_batch_size` images per update if that is given,
            else for `batch_size`.
        reference_batch_size: batch size from which `lr` is scaled linearly to `batch_size`; None disables scaling.
        batch_size: global batch size: images per update over all processes and accumulated parts.
        accumulate: number of parts into which each process splits its share of the batch.
        momentum: momentum of SGD.
        betas: betas of AdamW.
        weight_decay: weight decay; norms and biases have none.
        backbone_lr_factor: multiplier of the backbone's learning rate.
        warmup_steps: updates over which the rate rises linearly from `warmup_factor` times its value.
        warmup_factor: factor of the learning rate at the start of the warm-up, 0-1.
        schedule: "steps" multiplies by `gamma` at each milestone, "cosine" falls to 0 along half a cosine.
        milestones: updates after which the rate is multiplied by `gamma`, for "steps".
        gamma: factor at each milestone.
        max_steps: total number of updates.
        clip_norm: maximum norm of the gradients; None disables clipping.
        ema: decay of the moving average of the weights, which is evaluated and shipped; None disables it.
        precision: "32", or autocast to "bf16", or to "fp16" with a loss scaler.
        train_only: name prefixes of the only parameters to train (["occlusion"]); empty trains all.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = bounded(0.02, least=0)
    reference_batch_size: int | None = bounded(16, least=1)
    batch_size: int = bounded(16, least=1)
    accumulate: int = bounded(1, least=1)
    momentum: float = bounded(0.9, least=0, below=1)
    betas: tuple[float, float] = bounded((0.9, 0.999), least=0, below=1)
    weight_decay: float = bounded(1e-4, least=0)
    backbone_lr_factor: float = bounded(1.0, least=0)
    warmup_steps: int = bounded(1000, least=0)
    warmup_factor: float = bounded(0.001, least=0, most=1)
    schedule: Literal["steps", "cosine", "constant"] = "steps"
    milestones: list[int] = bounded([120_000, 160_000], least=0)
    gamma: float = bounded(0.1, above=0, most=1)
    max_steps: int = bounded(180_000, least=1)
    clip_norm: float | None = bounded(35.0, above=0)
    ema: float | None = bounded(None, above=0, below=1)
    precision: Literal["32", "bf16", "fp16"] = "32"
    train_only: list[str] = field(default_factory=list)


@dataclass
class EvalConfig:
    """Evaluation of PQ during and after training.

    Attributes:
        every: updates between two evaluations; 0 evaluates only at the end.
        short, long: images are resized to this short side unless the long side would exceed `long`.
        max_images: maximum number of images, the first of the data set; None evaluates all.
        pictures: number of images drawn (image, ground truth, prediction) in TensorBoard.
        method: fusion rule.
        fusion: fusion thresholds.
    """

    every: int = bounded(5000, least=0)
    short: int = bounded(800, least=2, most=65536)
    long: int = bounded(1333, least=2, most=65536)
    max_images: int | None = bounded(None, least=1)
    pictures: int = bounded(4, least=0)
    method: Method = "heuristic"
    fusion: FusionConfig = field(default_factory=FusionConfig)


@dataclass
class LogConfig:
    """Logs and checkpoints of a run.

    Attributes:
        every: updates between two lines of OUT/log.jsonl and points in TensorBoard.
        tensorboard: whether to write OUT/tensorboard.
        progress: whether to show a progress bar with the time left, if the output is a terminal.
        checkpoint_every: updates between two checkpoints.
        keep: number of newest checkpoints to keep, in addition to the one with the best PQ.
        to: services to log to beside OUT/log.jsonl and TensorBoard: "wandb" (Weights & Biases), "mlflow", or both.
            Their own environment variables choose project, server and offline mode.
    """

    every: int = bounded(20, least=1)
    tensorboard: bool = True
    progress: bool = True
    checkpoint_every: int = bounded(5000, least=1)
    keep: int = bounded(2, least=1)
    to: list[Literal["wandb", "mlflow"]] = field(default_factory=list)


@dataclass
class RunConfig:
    """Configuration of one training run.

    Attributes:
        model, data, augment, optim, eval, log: sections of the config.
        out: folder of the run: checkpoints/, log.jsonl, tensorboard/, and the pointers `last` and `best`.
        init: folder of a trained model to start from; tensors of another shape (such as for a new number of
            classes) are initialised randomly, and a log line names them.
        seed: random seed of weights, order, augmentation and sampling.
        workers: data loading processes per training process; 0 loads in the training process.
        threads: number of CPU threads of torch per process; None stands for OMP_NUM_THREADS if set, else for one
            per physical core that the process may use. Workers have one thread each.
        device: "cpu", "cuda" or "auto" (the GPU if there is one).
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    log: LogConfig = field(default_factory=LogConfig)
    out: str = "out"
    init: str | None = None
    seed: int = bounded(0, least=-(2**63), most=2**63 - 1)
    workers: int = bounded(4, least=0, most=1024)
    threads: int | None = bounded(None, least=1, most=1024)
    device: Literal["auto", "cpu", "cuda"] = "auto"


def fusion_heads(model: ModelConfig) -> list[Head]:
    """Return the heads of a model that fusion rules use."""
    return [head for head in get_args(Head) if getattr(model, head)]


class _ConfigFile(ActionConfigFile):
    """Argument action that applies the `base` files of a config in order, then the config itself."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        for path, content in with_bases(find_config(values)):
            check_structure(RunConfig, content, str(path))
            with field_errors(RunConfig, str(path)):  # quotes keep the text "1e5" apart from the number
                self.apply_config(parser, cfg, self.dest, yaml.safe_dump(content, default_style='"'))


def add_run_arguments(parser: ArgumentParser) -> None:
    """Add `--config FILE` and one option per field of `RunConfig`, such as `--optim.lr`, to a parser."""
    parser.add_argument(
        "--config",
        action=_ConfigFile,
        help="YAML of RunConfig fields, or the name of one of refine's own, such as nuclei; `base: FILE` extends "
        "another file",
    )
    parser.add_class_arguments(RunConfig)


def parse_run(arguments: Sequence[str]) -> RunConfig:
    """Parse command-line arguments into a checked `RunConfig`.

    Raises:
        RefineError: an unknown field, a wrong type, or inconsistent values.
    """
    parser = ArgumentParser(exit_on_error=False)
    add_run_arguments(parser)
    with field_errors(RunConfig, "config"):
        namespace = parser.parse_args(list(arguments))
        values = namespace.as_dict()
        del values["config"]
        check_structure(RunConfig, values, "config")
        values = parser.instantiate(namespace).as_dict()
    config = RunConfig(**{f.name: values[f.name] for f in dataclasses.fields(RunConfig)})
    check_run(config)
    return config


def load_run(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a config and apply overrides such as "--optim.lr=0.01".

    Args:
        path: YAML file, or the name of a config; see `find_config`.
        overrides: options that override fields.

    Raises:
        RefineError: see `find_config` and `parse_run`.
    """
    path = find_config(path)
    try:
        return parse_run(["--config", str(path), *overrides])
    except RefineError as error:
        if str(error).startswith(f"{path}: "):
            raise
        raise RefineError(f"{path}: {error}") from error


def check_run(config: RunConfig) -> None:
    """Check the ranges and the consistency of all fields.

    Raises:
        RefineError: names the field, its value and the fix.
    """
    check_bounds(config)
    optim, rpn, jitter = config.optim, config.model.rpn, config.augment.jitter
    if optim.schedule == "steps" and optim.milestones != sorted(optim.milestones):
        raise RefineError(f"optim.milestones is {optim.milestones}; give them in increasing order")
    if rpn.negative_iou > rpn.positive_iou:
        raise RefineError(
            f"model.rpn.negative_iou is {rpn.negative_iou}; give at most positive_iou ({rpn.positive_iou})"
        )
    if jitter[0] > jitter[1]:
        raise RefineError(f"augment.jitter is {list(jitter)}; give the smaller factor first")
    side = min(*config.augment.short, config.augment.long)
    if jitter[0] * side < SMALLEST:
        raise RefineError(
            f"augment.jitter is {list(jitter)}; give at least {SMALLEST} / {side}, as images need {SMALLEST} pixels"
        )
    check_dataset_fields(config.data.train, "data.train.")
    if config.data.val is not None:
        check_dataset_fields(config.data.val, "data.val.")
