"""refine info"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from refine.cli.options import count_from


def run(arguments: Sequence[str], prog: str, description: str) -> None:
    parser = argparse.ArgumentParser(prog, description=description)
    parser.add_argument("config", nargs="+", help="YAML files as `refine train` takes them")
    parser.add_argument("--things", type=count_from(1), default=80, help="thing classes (80, COCO's)")
    parser.add_argument("--classes", type=count_from(1), default=133, help="all classes (133, COCO's)")
    parser.add_argument("--size", type=count_from(1), nargs=2, default=(800, 1333), metavar=("H", "W"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=count_from(1), default=3, help="timed runs; the fastest counts (3)")
    options = parser.parse_args(arguments)
    if options.things > options.classes:
        parser.error(f"--things {options.things}: are more than --classes {options.classes}")

    from rich.console import Console
    from rich.table import Table

    from refine.experiments.cost import network_info
    from refine.experiments.machine import name_machine
    from refine.training.config import load_run

    summary = Table("config", "parameters (M)", "trained (M)", "GFLOPs", "seconds", "detections")
    tables = []
    for path in options.config:
        info = network_info(
            load_run(path).model,
            options.things,
            options.classes,
            tuple(options.size),
            options.device,
            options.repeats,
        )
        gflops = sum(stage.gflops for stage in info.stages.values())
        summary.add_row(
            path,
            f"{info.parameters / 1e6:.1f}",
            f"{info.trained / 1e6:.1f}",
            f"{gflops:.0f}",
            f"{info.seconds:.2f}",
            str(info.detections),
        )
        table = Table("stage", "GFLOPs", "seconds", title=path)
        for name, stage in info.stages.items():
            table.add_row(name, f"{stage.gflops:.1f}", f"{stage.seconds:.3f}")
        tables.append(table)
    for table in (summary, *tables):
        for column in table.columns[1:]:
            column.justify = "right"
    # A file or a pipe has no width to keep to.
    Console(width=None if sys.stdout.isatty() else 120).print(*tables, summary)
    print(f"one random image of {options.size[0]} × {options.size[1]} pixels on {name_machine(info.machine)}")
