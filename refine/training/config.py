"""What a training run is made of: one record, read from YAML with dotted overrides.

    parser = run_parser()
    config = parse_run(["--config", "configs/nuclei.yaml", "--optim.lr", "0.01"])

Unknown fields and values of the wrong type are errors that name them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser

from refine.bounds import bounded, check_bounds
from refine.config import check_yaml, one_line
from refine.data.config import AugmentConfig, DatasetConfig, check_dataset_fields
from refine.errors import RefineError
from refine.fusion.config import FusionConfig, Method
from refine.modeling.config import ModelConfig


@dataclass
class DataConfig:
    """Where the pictures are.

    Attributes:
        train: what is learnt from.
        val: what PQ is measured on during training; None measures nothing.
        name: of the data set, for the model's card.
    """

    train: DatasetConfig = field(default_factory=DatasetConfig)
    val: DatasetConfig | None = None
    name: str = ""


@dataclass
class OptimConfig:
    """How the weights move.

    Attributes:
        name: SGD with momentum or AdamW.
        lr: learning rate after warm-up, for `reference_batch_size` images per update if that is given,
            else for `batch_size`.
        reference_batch_size: scales the rate linearly to `batch_size`; None leaves it alone.
        batch_size: images per update in TOTAL, over all processes and accumulated parts.
        accumulate: parts that each process splits its share of the batch into, one after another.
        momentum: of SGD.
        betas: of AdamW.
        weight_decay: of weights; norms and biases have none.
        backbone_lr_factor: share of the rate that the backbone gets.
        warmup_steps: updates over which the rate rises linearly from `warmup_factor` of it.
        warmup_factor: where the warm-up starts, 0-1.
        schedule: multiply by `gamma` at each milestone, fall along a half cosine to 0, or stay.
        milestones: updates after which the rate falls ("steps").
        gamma: what it falls by.
        max_steps: updates in all.
        clip_norm: gradients are scaled down to this norm; None leaves them.
        ema: decay of the running mean of the weights, which is what is evaluated and shipped; None without.
        precision: "32", or autocast to "bf16", or to "fp16" with scaled losses.
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
    """Measuring PQ, during training and after.

    Attributes:
        every: updates between two evaluations; 0 evaluates only at the end.
        short, long: images are resized to this short side unless the long side would exceed `long`.
        max_images: only the first so many images of the set; None takes all.
        pictures: of them drawn (image, ground truth, prediction) for TensorBoard.
        method: rule of fusion.
        fusion: its thresholds.
    """

    every: int = bounded(5000, least=0)
    short: int = bounded(800, least=1, most=65536)
    long: int = bounded(1333, least=1, most=65536)
    max_images: int | None = bounded(None, least=1)
    pictures: int = bounded(4, least=0)
    method: Method = "heuristic"
    fusion: FusionConfig = field(default_factory=FusionConfig)


@dataclass
class LogConfig:
    """What a run leaves behind.

    Attributes:
        every: updates between two lines of OUT/log.jsonl and points in TensorBoard.
        tensorboard: write OUT/tensorboard.
        progress: show a bar with the time left, where the terminal can.
        checkpoint_every: updates between two checkpoints.
        keep: newest checkpoints that stay; the best by PQ stays besides.
    """

    every: int = bounded(20, least=1)
    tensorboard: bool = True
    progress: bool = True
    checkpoint_every: int = bounded(5000, least=1)
    keep: int = bounded(2, least=1)


@dataclass
class RunConfig:
    """One training run.

    Attributes:
        model, data, augment, optim, eval, log: its parts.
        out: folder of the run: checkpoints/, log.jsonl, tensorboard/, and the pointers `last` and `best`.
        init: folder of a trained model to start from; parts of other shape (a new number of classes) start
            anew, and a log line names them.
        seed: of weights, order, augmentation and sampling.
        workers: processes that load data, per training process; 0 loads in the training process.
        threads: number of CPU threads of torch per process; None takes OMP_NUM_THREADS if that is set, else one
            per physical core that the process may use. Workers have one each.
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


class ConfigFile(ActionConfigFile):
    """Applies the YAML files that a config names as its `base`, in their order, then the config itself."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        for content in with_bases(values):
            self.apply_config(parser, cfg, self.dest, content)


def with_bases(path: str | Path, seen: tuple[Path, ...] = ()) -> list[str]:
    """Resolve the `base` of a config.

    Args:
        path: YAML file. Its optional field `base` is one path or a list of paths, relative to the file's folder;
            what they say holds where the file itself says nothing.
        seen: files that lead to this one.

    Returns:
        Paths and YAML texts, in the order in which they are to be applied.

    Raises:
        RefineError: a base that is not a path, does not exist, or leads back to itself; or see `check_yaml`.
    """
    path = Path(path)
    if path.resolve() in seen:
        raise RefineError(f"{path}: base: the file is its own base; remove the circle")
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        check_yaml(text)
        values = yaml.safe_load(text)
    except RefineError as error:
        raise RefineError(f"{path}: {error}") from error
    except (yaml.YAMLError, UnicodeDecodeError):
        values = None  # jsonargparse says what is wrong with it
    if not isinstance(values, dict) or "base" not in values:
        return [str(path)]
    names = values.pop("base")
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RefineError(f"{path}: base: expected a path or a list of paths, got {names!r}")
    contents = []
    for name in names:
        if not (path.parent / name).is_file():
            raise RefineError(f"{path}: base: no such file {path.parent / name}; paths are relative to the config")
        contents += with_bases(path.parent / name, (*seen, path.resolve()))
    return [*contents, yaml.safe_dump(values, sort_keys=False)]


def add_run_arguments(parser: ArgumentParser) -> None:
    """Give a parser `--config FILE` and one `--field.of.field` per field of `RunConfig`."""
    parser.add_argument(
        "--config", action=ConfigFile, help="YAML of RunConfig fields; `base: FILE` builds on another"
    )
    parser.add_class_arguments(RunConfig)


def parse_run(arguments: Sequence[str]) -> RunConfig:
    """Parse command-line words into a checked `RunConfig`.

    Raises:
        RefineError: an unknown field, a wrong type, or values that do not fit together.
    """
    parser = ArgumentParser(exit_on_error=False)
    add_run_arguments(parser)
    try:
        namespace = parser.parse_args(list(arguments))
    except (ArgumentError, RecursionError) as error:
        raise RefineError(f"config: {one_line(error)}; mend the field or see --help") from error
    except UnicodeDecodeError as error:
        raise RefineError("config: is no UTF-8 text; save it as that") from error
    values = parser.instantiate(namespace).as_dict()
    config = RunConfig(**{f.name: values[f.name] for f in dataclasses.fields(RunConfig)})
    check_run(config)
    return config


def load_run(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, then apply overrides such as "--optim.lr=0.01"; raises as `parse_run`."""
    if not Path(path).is_file():
        raise RefineError(f"{path}: no such config file; check the path")
    try:
        return parse_run(["--config", str(path), *overrides])
    except RefineError as error:
        raise RefineError(f"{path}: {error}") from error


def check_run(config: RunConfig) -> None:
    """Refuse values that no run can work with.

    Raises:
        RefineError: names the field, its value and the mend.
    """
    check_bounds(config)
    optim, rpn, jitter = config.optim, config.model.rpn, config.augment.jitter
    if optim.schedule == "steps" and optim.milestones != sorted(optim.milestones):
        raise RefineError(f"optim.milestones is {optim.milestones}; give rising steps")
    if rpn.negative_iou > rpn.positive_iou:
        raise RefineError(
            f"model.rpn.negative_iou is {rpn.negative_iou}; give at most positive_iou ({rpn.positive_iou})"
        )
    if jitter[0] > jitter[1]:
        raise RefineError(f"augment.jitter is {list(jitter)}; give the smaller factor first")
    check_dataset_fields(config.data.train, "data.train")
    if config.data.val is not None:
        check_dataset_fields(config.data.val, "data.val")
