"""Tables of the paper, re-run on any data: train the rows, measure them, render what is known so far.

    table = load_table("table4")
    run_table(table, "configs/scenes.yaml", "runs/tables", seeds=3)

A table is a small YAML file in refine/experiments. Rows that need the same model share one, over all tables
of an output folder; whatever is there already is used, and a run that was stopped goes on.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from refine.engine.batches import build_dataset
from refine.engine.config import RunConfig, from_mapping, load_run, to_mapping
from refine.engine.evaluate import evaluate
from refine.engine.machine import describe_machine
from refine.engine.predictor import Predictor
from refine.engine.state import last_checkpoint
from refine.engine.train import train
from refine.errors import RefineError
from refine.files import read_json, write_json
from refine.fusion import Method

EXPERIMENTS = Path(__file__).parents[1] / "experiments"

IRRELEVANT = ("out", "eval", "log", "workers", "threads", "device")
"""Parts of a config that do not change the trained weights."""


@dataclass
class Row:
    """One line of a table.

    Attributes:
        name: unique in the table.
        train: dotted fields of the config that this row changes; None trains nothing.
        of: row whose model it starts from, or, where it trains nothing, whose model it uses.
        steps: share of the base's updates.
        method: rule of fusion.
        fusion: fields of the fusion's thresholds that it changes.
    """

    name: str
    train: dict[str, Any] | None = None
    of: str | None = None
    steps: float = 1.0
    method: Method = "heuristic"
    fusion: dict[str, Any] = field(default_factory=dict)


@dataclass
class Table:
    """One table of the paper.

    Attributes:
        title: what it shows.
        metrics: columns, of `Evaluation.metrics`.
        rows: its lines.
        reference: row that the others are compared with; the first one if None.
    """

    title: str
    metrics: list[str]
    rows: list[Row]
    reference: str | None = None


def load_table(name: str | Path) -> Table:
    """Read `refine/experiments/NAME.yaml`, or a file of one's own.

    Raises:
        RefineError: no such table, or a broken one.
    """
    path = next((p for p in (EXPERIMENTS / f"{name}.yaml", Path(name)) if p.is_file()), None)
    if path is None:
        known = ", ".join(sorted(p.stem for p in EXPERIMENTS.glob("*.yaml")))
        raise RefineError(f"{name}: no such table; give a file, or one of {known}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise RefineError(f"{path}: is not YAML ({' '.join(str(error).split())}); correct it") from error
    if not isinstance(content, dict):
        raise RefineError(f"{path}: is no mapping; give title, metrics and rows")
    table = from_mapping(Table, content, str(path))
    if table.reference not in (None, *(row.name for row in table.rows)):
        raise RefineError(f"{path}: reference: no row {table.reference!r}; name one of the rows")
    for n, row in enumerate(table.rows):
        earlier = {r.name for r in table.rows[:n]}
        if row.name in earlier:
            raise RefineError(f"{path}: rows: {row.name!r} occurs twice; rename one")
        if row.of is not None and row.of not in earlier:
            raise RefineError(f"{path}: row {row.name!r}: of: no row {row.of!r} comes before it")
        if row.train is None and row.of is None:
            raise RefineError(f"{path}: row {row.name!r}: give `train` or `of`")
    return table


def run_table(
    table: Table,
    base: str | Path,
    out: str | Path,
    *,
    seeds: Sequence[int],
    overrides: Sequence[str] = (),
    minutes: float | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Train and measure what is not there yet, seed by seed.

    Args:
        table: what to run.
        base: YAML of the run that rows change.
        out: folder of models/ and results.
        seeds: of the runs.
        overrides: changes of the base, such as "--device=cuda".
        minutes: stop when they are over; what was begun goes on next time.

    Returns:
        By row: one result per finished seed, in the order of the seeds.

    Raises:
        RefineError: a config that cannot be used, or a run that fails.
    """
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    results: dict[str, list[dict[str, Any]]] = {row.name: [] for row in table.rows}
    for seed in seeds:
        folders: dict[str, Path] = {}
        for row, config in _configs(table, base, Path(out), seed, overrides, folders):
            if not _finished(config):
                train(config, resume=True, deadline=deadline)
                if not _finished(config):
                    return results
            results[row.name].append(_measure(row, config, seed))
            if deadline is not None and time.monotonic() > deadline:
                return results
    return results


def _configs(
    table: Table,
    base: str | Path,
    out: Path,
    seed: int,
    overrides: Sequence[str],
    folders: dict[str, Path],
) -> Iterator[tuple[Row, RunConfig]]:
    """Each row with the run whose model it uses; `folders` collects the runs' folders by row."""
    configs: dict[str, RunConfig] = {}
    for row in table.rows:
        if row.train is None:
            config = configs[str(row.of)]
        else:
            words = [f"--{name}={json.dumps(value)}" for name, value in row.train.items()]
            config = load_run(base, [*overrides, *words, f"--seed={seed}"])
            scale = row.steps
            config.optim.max_steps = max(round(scale * config.optim.max_steps), 1)
            config.optim.milestones = [round(scale * step) for step in config.optim.milestones]
            config.optim.warmup_steps = round(scale * config.optim.warmup_steps)
            config.init = str(folders[row.of]) if row.of is not None else config.init
            digest = _digest(config, folders[row.of].parent.name if row.of is not None else None)
            config.out = str(out / "models" / digest / f"seed{seed}")
        configs[row.name], folders[row.name] = config, Path(config.out)
        yield row, config


def _digest(config: RunConfig, start: str | None) -> str:
    """Short name of what decides the weights, but for the seed; `start` is that of the model begun with.

    Defaults are left out, so that the name stays when fields are added to configs.
    """
    values = _changed(to_mapping(config), to_mapping(RunConfig()))
    for name in (*IRRELEVANT, "seed", "init"):
        values.pop(name, None)
    values["data"] = values["data"].get("train")
    return _short([values, start or config.init])


def _changed(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """What differs from the defaults, part by part."""
    changed = {}
    for name, value in values.items():
        default = defaults.get(name)
        if isinstance(value, dict) and isinstance(default, dict):
            value = _changed(value, default)
            if value:
                changed[name] = value
        elif value != default:
            changed[name] = value
    return changed


def _short(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def _finished(config: RunConfig) -> bool:
    last = last_checkpoint(config.out)
    return last is not None and read_json(last / "state.json")["step"] >= config.optim.max_steps


def _measure(row: Row, config: RunConfig, seed: int) -> dict[str, Any]:
    """Evaluate one row's model on `data.val`, or read what was measured before."""
    if config.data.val is None:
        raise RefineError("data.val: is not given; a table needs data to measure on")
    last = last_checkpoint(config.out)
    assert last is not None
    values = to_mapping(config)
    key = _short([row.method, row.fusion, values["eval"], values["data"]["val"]])
    path = Path(config.out) / "results" / f"{key}.json"
    if path.is_file():
        return read_json(path)
    predictor = Predictor(last, device=None if config.device == "auto" else config.device, method=row.method)
    predictor.fusion = replace(config.eval.fusion, **row.fusion)
    began = time.monotonic()
    evaluation = evaluate(
        predictor,
        build_dataset(config.data.val, "data.val"),
        occlusion_accuracy=True,
        max_images=config.eval.max_images,
        workers=config.workers,
    )
    result = {
        "row": row.name,
        "seed": seed,
        "metrics": evaluation.metrics,
        "images": len(evaluation.report.images),
        "training_minutes": _training_minutes(Path(config.out)),
        "evaluation_minutes": (time.monotonic() - began) / 60,
        "steps": config.optim.max_steps,
        "machine": describe_machine(torch.device(predictor.device)),
    }
    write_json(path, result, indent=1)
    return result


def _training_minutes(out: Path) -> float:
    """Seconds that updates took, by the run's own log."""
    seconds, before = 0.0, 0
    for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines():
        entry: Mapping[str, Any] = json.loads(line)
        if entry.get("group") == "train":
            seconds += (entry["data_seconds"] + entry["compute_seconds"]) * (entry["step"] - before)
            before = entry["step"]
    return seconds / 60
