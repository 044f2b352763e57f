"""Reproduction of the paper's tables on any data: training and evaluation of the rows.

    table = load_table("table4")
    run_table(table, "scenes", "runs/tables", seeds=3)

A table is a small YAML file in refine/experiments. Rows that need the same model share it, across all tables of an
output folder. Existing models and results are reused, and stopped runs are resumed.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from refine.config import to_mapping
from refine.data.build import build_dataset
from refine.errors import RefineError
from refine.evaluation.average_precision import COCO_LIMIT
from refine.evaluation.interval import write_counts
from refine.experiments.machine import describe_machine
from refine.experiments.tables import Row, Table
from refine.files import read_json, write_json
from refine.fusion.config import methods_with
from refine.inference.evaluate import Evaluation, evaluate
from refine.inference.measures import BoxAndMaskAP, Measure, OrderAccuracy, Quality
from refine.inference.predictor import Predictor
from refine.runtime import Processes, processes
from refine.training.config import RunConfig, fusion_heads, load_run
from refine.training.run_folder import last_checkpoint
from refine.training.train import train

IRRELEVANT = ("out", "eval", "log", "workers", "threads", "device")
"""Config sections that do not affect the trained weights."""


def run_table(
    table: Table,
    base: str | Path,
    out: str | Path,
    *,
    seeds: Sequence[int],
    overrides: Sequence[str] = (),
    minutes: float | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Train and evaluate what is missing, seed by seed.

    Args:
        table: table to run.
        base: YAML of the run that rows modify, or a folder of such files if the rows name theirs.
        out: folder of models/ and results, visible to all processes under torchrun.
        seeds: seeds of the runs.
        overrides: overrides of the base, such as "--device=cuda".
        minutes: time after which to stop; an unfinished run is resumed by the next call.

    Returns:
        By row, one result per finished seed, in the order of the seeds; `counts` is the path of a file of
        `refine.evaluation.interval.Counts`.

    Raises:
        RefineError: a config is invalid, or a run fails.
    """
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    plans = {seed: _configs(table, base, Path(out), seed, overrides) for seed in seeds}
    results: dict[str, list[dict[str, Any]]] = {row.name: [] for row in table.rows}
    device = next(iter(plans.values()))[0][1].device
    with processes(device) as group:  # joined once, for all the models
        _fill(results, table, plans, deadline, group)
    return results


Plan = list[tuple[Row, RunConfig]]
"""Rows of a table, its start first, each with the config of the run whose model it uses."""


def _fill(
    results: dict[str, list[dict[str, Any]]],
    table: Table,
    plans: Mapping[int, Plan],
    deadline: float | None,
    group: Processes,
) -> None:
    """Add the existing results, and those that can be computed before the deadline."""
    ap = any(name.startswith("AP_") for name in table.metrics)
    over = False
    for seed, plan in plans.items():
        for row, config in plan:
            if config.data.val is None:
                raise RefineError("data.val is missing; a table needs validation data")
            if not over and not _finished(config):
                # Without validation during training: `_measure` evaluates each row with its own fusion rule.
                train(replace(config, data=replace(config.data, val=None)), resume=True, deadline=deadline)
                over = not _finished(config)  # stopped by the deadline or a signal
            if row is not table.start:
                path = _result_path(row, config, ap)
                if not over and _finished(config) and not path.is_file():
                    same = [r for r, c in plan if c.out == config.out and r is not table.start]
                    missing = [r for r in same if not _result_path(r, config, ap).is_file()]
                    _measure(missing, config, seed, ap, group)
                if path.is_file():
                    results[row.name].append(read_json(path) | {"counts": path.with_suffix(".npz")})
            over = over or (deadline is not None and group.any(time.monotonic() > deadline)[0])


def _configs(table: Table, base: str | Path, out: Path, seed: int, overrides: Sequence[str]) -> Plan:
    """Return the rows of one seed with their configs."""
    configs: dict[str, RunConfig] = {}
    folders: dict[str, Path] = {}
    rows = table.rows if table.start is None else [table.start, *table.rows]
    for row in rows:
        if row.train is None:
            config = configs[str(row.of)]
        else:
            config = load_run(_find(row, Path(base)), [*overrides, *row.overrides(), f"--seed={seed}"])
            _set_schedule(row, config)
            if config.eval.method not in methods_with(fusion_heads(config.model)):
                config.eval.method = row.method  # the row omits the head that the rule of the data's config needs
            start = table.start.name if table.start is not None and not row.fresh else ""
            before = folders.get(row.of or start)
            config.init = str(before) if before is not None else config.init
            digest = _digest(config, before.parent.name if before is not None else None)
            config.out = str(out / "models" / digest / f"seed{seed}")
        configs[row.name], folders[row.name] = config, Path(config.out)
    return [(row, configs[row.name]) for row in rows]


def _set_schedule(row: Row, config: RunConfig) -> None:
    """Set the number of updates, milestones, warm-up and learning rate of a row."""
    optim = config.optim
    optim.lr *= row.rate
    if row.epochs is not None:
        epoch = len(build_dataset(config.data.train, "data.train.")) / optim.batch_size
        optim.max_steps = max(round(row.epochs * epoch), 1)
        optim.milestones = [round(n * epoch) for n in range(1, row.epochs)]
        return
    optim.max_steps = max(round(row.steps * optim.max_steps), 1)
    optim.milestones = [round(row.steps * step) for step in optim.milestones]
    optim.warmup_steps = round(row.steps * optim.warmup_steps)


def _find(row: Row, base: Path) -> Path:
    if row.config is not None and not base.is_dir():
        raise RefineError(
            f"{base}: row {row.name!r} names a config of its own; give the folder of {row.config}.yaml"
        )
    if row.config is None and base.is_dir():
        known = ", ".join(sorted(path.name for path in base.glob("*.yaml")))
        raise RefineError(f"{base}: is a folder, and the table takes one config; give one of {known}")
    return base / f"{row.config}.yaml" if row.config is not None else base


def _digest(config: RunConfig, start: str | None) -> str:
    """Return a digest of everything that determines the weights except the seed.

    Fields with default values are ignored, so that the digest does not change when fields are added to configs.

    Args:
        config: config of the run.
        start: digest of the model that the run starts from, or None.
    """
    values = _changed(to_mapping(config), to_mapping(RunConfig()))
    for name in (*IRRELEVANT, "seed", "init"):
        values.pop(name, None)
    values["data"] = values["data"].get("train")
    return _short([values, start or config.init])


def _changed(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Return the values that differ from the defaults, recursively."""
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


def _result_path(row: Row, config: RunConfig, average_precision: bool) -> Path:
    """Return the path of a row's result; the counts per image are stored beside it as .npz."""
    values = to_mapping(config)
    key = _short([row.method, row.fusion, values["eval"], values["data"]["val"], average_precision])
    return Path(config.out) / "results" / f"{key}.json"


def _measure(rows: Sequence[Row], config: RunConfig, seed: int, average_precision: bool, group: Processes) -> None:
    """Evaluate a model on `data.val` under the fusion rules of some rows, and write the results."""
    last = last_checkpoint(config.out)
    assert last is not None
    assert config.data.val is not None
    began = time.monotonic()
    predictor = Predictor(last, device=group.device)
    for row in rows:
        predictor.check_method(row.method)
    measures: list[Measure] = [Quality(), OrderAccuracy()]
    if average_precision:
        measures.append(BoxAndMaskAP(COCO_LIMIT))
    evaluations = evaluate(
        predictor,
        build_dataset(config.data.val, "data.val."),
        rules=[(row.method, replace(config.eval.fusion, **row.fusion)) for row in rows],
        measures=measures,
        max_images=config.eval.max_images,
        workers=config.workers,
        group=group,
    )
    if group.first:
        _write_results(rows, evaluations, config, seed, group.device, (time.monotonic() - began) / 60)
    group.wait()


def _write_results(
    rows: Sequence[Row],
    evaluations: Sequence[Evaluation],
    config: RunConfig,
    seed: int,
    device: torch.device,
    minutes: float,
) -> None:
    for row, evaluation in zip(rows, evaluations, strict=True):
        path = _result_path(row, config, BoxAndMaskAP in evaluation)
        write_counts(path.with_suffix(".npz"), evaluation.counts)
        result = {
            "row": row.name,
            "seed": seed,
            "metrics": evaluation.metrics,
            "PQ_of_class": {c.category.name: c.pq for c in evaluation.report.classes if c.present},
            "images": len(evaluation.report.images),
            "pairs": evaluation[OrderAccuracy].totals,
            "false_pairs": evaluation[OrderAccuracy].false_totals,
            "training_minutes": _training_minutes(Path(config.out)),
            "evaluation_minutes": minutes,
            "steps": config.optim.max_steps,
            "machine": describe_machine(device),
        }
        write_json(path, result, indent=1)


def _training_minutes(out: Path) -> float:
    """Return the minutes that the updates of a run took, according to its log."""
    seconds, before = 0.0, 0
    for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines():
        entry: Mapping[str, Any] = json.loads(line)
        if entry.get("group") == "train":
            seconds += (entry["data_seconds"] + entry["compute_seconds"]) * (entry["step"] - before)
            before = entry["step"]
    return seconds / 60
