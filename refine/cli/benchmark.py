"""refine benchmark"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path


def run(arguments: Sequence[str], prog: str, description: str) -> None:
    parser = argparse.ArgumentParser(
        prog,
        description=description,
        epilog="Further arguments change fields of a YAML, such as --model.occlusion {} --eval.method soe.",
    )
    parser.add_argument("model", help="YAML of a run (random weights), a shipped model, or a folder")
    parser.add_argument("--things", type=int, default=80, help="thing classes, of a YAML (80, COCO's)")
    parser.add_argument("--classes", type=int, default=133, help="all classes, of a YAML (133, COCO's)")
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1333), metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("32", "bf16", "fp16"), default="32")
    parser.add_argument("--compile", action="store_true", help="compile backbone and pyramid")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs; the median counts (5)")
    parser.add_argument("--out", help="JSON to write")
    options, overrides = parser.parse_known_args(arguments)

    from rich.console import Console
    from rich.table import Table

    from refine.checkpoint.folder import SavedModel, load_model
    from refine.errors import RefineError
    from refine.experiments.benchmark import benchmark
    from refine.experiments.cost import random_model
    from refine.experiments.machine import name_machine
    from refine.files import write_json
    from refine.structures import Categories
    from refine.training.config import load_run

    if min(options.batch, options.rounds, *options.size) < 1:
        raise RefineError("--batch, --rounds and --size need at least 1")
    if Path(options.model).suffix in (".yaml", ".yml"):
        config = load_run(options.model, overrides)
        names = [
            {"id": n + 1, "name": f"class {n + 1}", "isthing": n < options.things} for n in range(options.classes)
        ]
        model = random_model(config.model, options.things, options.classes)
        saved = SavedModel(
            model, Categories.from_json(names), (800, 1333), method=config.eval.method, fusion=config.eval.fusion
        )
    elif overrides:
        parser.error(f"unrecognized arguments: {' '.join(overrides)}; a trained model is taken as it is")
    else:
        saved = load_model(options.model)
    result = benchmark(
        saved,
        size=tuple(options.size),
        batch=options.batch,
        device=options.device,
        precision=options.precision,
        compiled=options.compile,
        rounds=options.rounds,
    )
    table = Table("stage", "seconds per image", "share")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, seconds in result.stages.items():
        table.add_row(name, f"{seconds:.4f}", f"{100 * seconds / result.seconds:.0f}%")
    table.add_row("all", f"{result.seconds:.4f}", "100%")
    Console().print(table)
    machine = result.machine
    print(
        f"{options.size[0]} × {options.size[1]}, batch {options.batch}, "
        f"{result.detections:.0f} detections per image, peak {result.memory / 2**30:.2f} GiB"
    )
    print(f"{name_machine(machine)}, torch {machine['torch']}, commit {machine['commit']}, {machine['date']}")
    if options.out:
        write_json(options.out, asdict(result) | {"size": options.size, "batch": options.batch}, indent=1)
        print(f"written to {options.out}")
