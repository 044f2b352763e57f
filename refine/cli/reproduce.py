"""refine reproduce, refine compare"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from refine.errors import RefineError


def run(arguments: Sequence[str], prog: str, description: str) -> None:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog="Further arguments change fields of the config, such as --optim.max_steps 500.",
    )
    parser.add_argument("table", help="table1 … table6, rules, ibpp, settings, or a YAML file of rows")
    parser.add_argument(
        "--data",
        required=True,
        help="NAME for configs/NAME.yaml or, for table1 and table2, the folder configs/NAME",
    )
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="only these, and those that they go on from")
    add_arguments(parser, seeds=3)
    options, overrides = parser.parse_known_args(arguments)
    command = f"{prog} {shlex.join(arguments)}"
    make_tables([options.table], find_config(options.data), options, overrides, command, options.rows)


def add_arguments(parser: argparse.ArgumentParser, seeds: int) -> None:
    """What `reproduce` and `compare` have in common."""
    parser.add_argument("--seeds", type=int, default=seeds, help=f"runs per row ({seeds})")
    parser.add_argument("--first-seed", type=int, default=0, help="0; others for runs side by side")
    parser.add_argument("--budget", type=float, help="minutes after which to stop; call again to go on")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.add_argument("--out", default="runs/tables", help="folder of models and tables (runs/tables)")


def find_config(name: str) -> Path:
    """NAME, configs/NAME.yaml or the folder configs/NAME below the current folder."""
    for path in (Path("configs") / f"{name}.yaml", Path("configs") / name, Path(name)):
        if path.exists():
            return path
    raise RefineError(f"{name}: no such config; give a file, or a name in configs/ from where that folder is")


def make_tables(
    names: Sequence[str],
    base: Path,
    options: argparse.Namespace,
    overrides: Sequence[str],
    command: str,
    rows: Sequence[str] | None = None,
) -> None:
    """Run tables, or these rows of them, and print them; each is written to OUT/TABLE_DATA.{md,json,png}."""
    from rich.console import Console
    from rich.markdown import Markdown

    from refine.experiments.render import write_table
    from refine.experiments.reproduce import run_table
    from refine.experiments.tables import load_table, only
    from refine.runtime import is_first

    if options.seeds < 1:
        raise RefineError(f"--seeds is {options.seeds}; give at least 1")
    out = Path(options.out)
    tables = [load_table(name) for name in names]
    if rows is not None:
        tables = [only(table, rows) for table in tables]
    for name, table in zip(names, tables, strict=True):
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
        # A file or a pipe has no width to keep to.
        Console(width=None if sys.stdout.isatty() else 160).print(
            Markdown(write_table(table, results, path, command))
        )
        print(f"written to {path}.md, .json and .png")
