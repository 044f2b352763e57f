"""refine compare"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence

from refine.cli.reproduce import add_arguments, find_config, make_tables


def run(arguments: Sequence[str], prog: str, description: str) -> None:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog="Further arguments change fields of the config, such as --optim.max_steps 500.",
    )
    parser.add_argument("config", help="YAML of a run with data.val, or NAME for configs/NAME.yaml")
    add_arguments(parser, seeds=1)
    options, overrides = parser.parse_known_args(arguments)
    command = f"{prog} {shlex.join(arguments)}"
    make_tables(["table3", "table5", "table6"], find_config(options.config), options, overrides, command)
