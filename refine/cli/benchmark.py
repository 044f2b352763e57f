"""refine benchmark"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from refine.checkpoint.find import find_model
from refine.cli.options import check_out_file, count_from, print_tables, require_paths
from refine.cli.parser import Parser

if TYPE_CHECKING:
    from refine.checkpoint.folder import SavedModel
    from refine.experiments.cost import Cost


def run(arguments: Sequence[str], prog: str, description: str) -> None:
    options, overrides = _parse(arguments, prog, description)
    require_paths(model for model in options.model if _is_yaml(model))
    check_out_file("--out", options.out, options.model)
    for model in options.model:
        if not _is_yaml(model):
            find_model(model)

    from refine.experiments.cost import measure_cost
    from refine.files import write_json
    from refine.runtime import prepare_cpu

    prepare_cpu(None)
    costs = {
        model: measure_cost(
            _build(model, options, overrides),
            size=tuple(options.size),
            batch=options.batch,
            device=options.device,
            precision=options.precision,
            compiled=options.compile,
            rounds=options.rounds,
        )
        for model in options.model
    }
    _print(costs, options)
    if options.out:
        settings = {"size": options.size, "batch": options.batch, "precision": options.precision}
        models = {model: asdict(cost) for model, cost in costs.items()}
        write_json(options.out, settings | {"models": models}, indent=1)
        print(f"written to {options.out}")


def _parse(arguments: Sequence[str], prog: str, description: str) -> tuple[argparse.Namespace, list[str]]:
    """Return the options, and the overrides of fields of the YAML files."""
    parser = Parser(
        prog,
        description=description,
        epilog="Further arguments override fields of the YAML files, e.g. --model.occlusion {} --eval.method soe.",
    )
    parser.add_argument("model", nargs="+", help="config YAML (random weights), name of a model, or model folder")
    parser.add_argument(
        "--things", type=count_from(1), default=80, help="number of thing classes for a YAML (default: 80, as COCO)"
    )
    parser.add_argument(
        "--classes", type=count_from(1), default=133, help="number of classes for a YAML (default: 133, as COCO)"
    )
    parser.add_argument(
        "--size",
        type=count_from(1),
        nargs=2,
        default=(800, 1333),
        metavar=("H", "W"),
        help="height and width of the images in pixels (default: 800 1333)",
    )
    parser.add_argument("--batch", type=count_from(1), default=1, help="images per forward pass (default: 1)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, … (default: cpu)")
    parser.add_argument("--precision", choices=("32", "bf16", "fp16"), default="32", help="(default: 32)")
    parser.add_argument("--compile", action="store_true", help="compile the backbone and the FPN")
    parser.add_argument(
        "--rounds", type=count_from(1), default=5, help="timed runs, of which the median is taken (default: 5)"
    )
    parser.add_argument("--out", help="JSON file to write")
    options, overrides = parser.parse_known_args(arguments)
    if options.things > options.classes:
        parser.error(f"--things {options.things}: expected at most --classes {options.classes}")
    if overrides and not all(_is_yaml(model) for model in options.model):
        parser.error(f"unrecognized arguments: {' '.join(overrides)}; only the fields of a YAML can be overridden")
    return options, overrides


def _print(costs: dict[str, Cost], options: argparse.Namespace) -> None:
    """Print a table of the stages of each model, and a summary."""
    from rich.table import Table

    from refine.experiments.machine import name_machine

    summary = Table("model", "parameters (M)", "trained (M)", "GFLOPs", "seconds", "detections", "peak GiB")
    tables = []
    for model, cost in costs.items():
        numbers = (cost.parameters / 1e6, cost.trained / 1e6, sum(s.gflops for s in cost.stages.values()))
        summary.add_row(
            model,
            *(f"{number:.1f}" for number in numbers),
            f"{cost.seconds:.3f}",
            f"{cost.detections:.0f}",
            f"{cost.memory / 2**30:.2f}",
        )
        table = Table("stage", "GFLOPs", "seconds", "share", title=model)
        for name, stage in cost.stages.items():
            share = 100 * stage.seconds / cost.seconds
            table.add_row(name, f"{stage.gflops:.1f}", f"{stage.seconds:.4f}", f"{share:.0f}%")
        tables.append(table)
    for table in (summary, *tables):
        for column in table.columns[1:]:
            column.justify = "right"
    print_tables(*tables, summary)
    machine = next(iter(costs.values())).machine
    print(f"per image of {options.size[0]} × {options.size[1]} pixels, batch {options.batch}")
    print(f"{name_machine(machine)}, torch {machine['torch']}, commit {machine['commit']}, {machine['date']}")


def _is_yaml(model: str) -> bool:
    return Path(model).suffix in (".yaml", ".yml")


def _build(model: str, options: argparse.Namespace, overrides: Sequence[str]) -> SavedModel:
    """Load a trained model by name or folder, or build the network of a YAML with random weights."""
    from refine.checkpoint.folder import SavedModel, load_model
    from refine.experiments.cost import random_model
    from refine.structures import Categories
    from refine.training.config import load_run

    if not _is_yaml(model):
        return load_model(model)
    config = load_run(model, overrides)
    names = [{"id": n + 1, "name": f"class {n + 1}", "isthing": n < options.things} for n in range(options.classes)]
    return SavedModel(
        random_model(config.model, options.things, options.classes),
        Categories.from_json(names),
        (800, 1333),
        method=config.eval.method,
        fusion=config.eval.fusion,
    )
