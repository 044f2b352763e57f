"""refine reproduce"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from refine.cli.options import check_out_folder, count_from, positive, print_tables
from refine.cli.parser import Parser
from refine.errors import RefineError, counted

OF_CHECKPOINTS = {"routes", "order", "figure2"}
"""Tables, and a figure, of existing checkpoints, for which nothing is trained."""


def run(arguments: Sequence[str], prog: str, description: str) -> None:
    parser = Parser(
        prog=prog,
        description=description,
        epilog="Further arguments override fields of the config, e.g. --optim.max_steps 500.",
    )
    parser.add_argument(
        "table",
        nargs="+",
        help="table1 … table6, rules, ibpp, exchange, exchange_heads, settings, routes, order, figure2, or YAML "
        "files; run one by one",
    )
    parser.add_argument(
        "--data",
        required=True,
        help="YAML file, or name of one of refine's own configs (nuclei, scenes, coco/refine_r50, …); for table1 "
        "and table2 a folder of configs, or coco or cityscapes",
    )
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="run only these rows and the rows they start from")
    parser.add_argument(
        "--reference", metavar="ROW", help="row that the others are compared with (default: the table's)"
    )
    parser.add_argument(
        "--paper-schedule",
        action="store_true",
        help="train every row with the full schedule of the config and the fusion heads for three epochs, as in "
        "the paper (default: rows start from a shared checkpoint)",
    )
    parser.add_argument("--seeds", type=count_from(1), default=3, help="runs per row (default: 3)")
    parser.add_argument("--first-seed", type=count_from(0), default=0, help="first seed of these runs (default: 0)")
    parser.add_argument(
        "--checkpoint",
        nargs="+",
        metavar="RUN",
        help="runs of several seeds, for routes and order; models to compare, for figure2",
    )
    parser.add_argument(
        "--occlusion", nargs="+", metavar="HEAD", default=[], help="occlusion head of each checkpoint, for order"
    )
    parser.add_argument("--budget", type=positive, help="minutes after which to stop; the same command resumes")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto (default: auto)")
    parser.add_argument("--out", default="runs/tables", help="folder of runs and tables (default: runs/tables)")
    options, overrides = parser.parse_known_args(arguments)

    check_out_folder(options.out)

    from refine.training.config_files import find_config

    make = make_tables if OF_CHECKPOINTS.isdisjoint(options.table) else evaluate_checkpoints
    make(find_config(options.data, folder=True), options, overrides, command=f"{prog} {shlex.join(arguments)}")


def make_tables(base: Path, options: argparse.Namespace, overrides: Sequence[str], command: str) -> None:
    """Run tables, or some of their rows, and print them; write each to OUT/TABLE_DATA.{md,json,png}."""
    from rich.markdown import Markdown

    from refine.experiments.render import write_table
    from refine.experiments.reproduce import run_table
    from refine.experiments.tables import compared_with, load_table, only, paper_schedule
    from refine.runtime import is_first

    given = [f"--{name}" for name in ("checkpoint", "occlusion") if getattr(options, name)]
    if given:
        raise RefineError(
            f"{given[0]}: {options.table[0]} trains its models; for the fusion rules of existing ones, give the "
            "table order"
        )
    out = Path(options.out)
    tables = [load_table(name) for name in options.table]
    if options.rows is not None:
        tables = [only(table, options.rows) for table in tables]
    if options.reference is not None:
        tables = [compared_with(table, options.reference) for table in tables]
    if options.paper_schedule:
        tables = [paper_schedule(table) for table in tables]
    for name, table in zip(options.table, tables, strict=True):
        results = run_table(
            table,
            base,
            out,
            seeds=range(options.first_seed, options.first_seed + options.seeds),
            overrides=[*overrides, f"--device={options.device}", "--log.progress=false"],
            minutes=options.budget,
        )
        if not is_first():
            continue
        path = out / f"{Path(name).stem}_{base.stem}"
        print_tables(Markdown(write_table(table, results, path, command)), width=160)
        print(f"written to {path}.md, .json and .png")


def evaluate_checkpoints(base: Path, options: argparse.Namespace, overrides: Sequence[str], command: str) -> None:
    """Print the table `routes` or `order` and write OUT/TABLE_DATA.{md,json,png}, or write sheets of `figure2`."""
    from rich.markdown import Markdown

    from refine.data.build import build_dataset
    from refine.experiments.figure2 import draw_figure
    from refine.experiments.order import measure_order
    from refine.experiments.render import write_table
    from refine.experiments.routes import measure_routes
    from refine.training.config import load_run

    name = next(table for table in options.table if table in OF_CHECKPOINTS)
    if len(options.table) > 1 or not options.checkpoint:
        raise RefineError(f"{name}: expected no other table, and --checkpoint RUN [RUN …]")
    given = [options.rows, options.reference, options.paper_schedule or None, options.budget]
    if any(option is not None for option in given):
        raise RefineError(f"{name}: trains nothing; omit --rows, --reference, --paper-schedule and --budget")
    if options.occlusion and name != "order":
        raise RefineError(f"{name}: --occlusion is for the table order; omit it")
    fields = [word.split("=")[0] for word in overrides if word.startswith("--")]
    ignored = [field for field in fields if not field.startswith(("--data.val", "--eval.max_images"))]
    if ignored:
        raise RefineError(
            f"{ignored[0]}: {name} evaluates checkpoints with their own networks and fusion thresholds; give "
            "fields of data.val and eval.max_images alone"
        )
    config = load_run(base, overrides)
    if config.data.val is None:
        raise RefineError(f"{base}: data.val is missing; {name} is evaluated on it")
    out = Path(options.out)
    dataset = build_dataset(config.data.val, "data.val.")
    path = out / f"{name}_{base.stem}"
    if name == "figure2":
        paths = draw_figure(options.checkpoint, dataset, path, config.eval.max_images, options.device)
        print(f"written: {counted(len(paths), 'sheet')} in {path}")
        return
    arguments = options.checkpoint, dataset, out, config.eval.max_images, options.device
    if name == "order":
        table, results, notes = measure_order(*arguments, options.occlusion)
    else:
        table, results, notes = measure_routes(*arguments)
    text = write_table(table, results, path, command, notes=notes)
    print_tables(Markdown(text), width=160)
    print(f"written to {path}.md, .json and .png")
