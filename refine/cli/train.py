"""refine train"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from refine.cli.options import check_out_folder
from refine.cli.parser import Parser
from refine.errors import RefineError, did_you_mean

if TYPE_CHECKING:  # slow to import, which would delay every --help
    from refine.training.config import RunConfig

RESUMING = (
    "continue from the last checkpoint in --out, with the config stored there unless --config is given; other "
    "options override it"
)
STOPPING = "Ctrl-C and SIGTERM end a run after the current update, write a checkpoint, and exit with 130 and 143."


def run(arguments: Sequence[str], prog: str, description: str) -> None:
    words = [word for word in arguments if word != "--resume"]
    resume = len(words) < len(arguments)
    names = {word.split("=")[0] for word in words}
    if {"--help", "-h", "--print_config"} & names:
        from jsonargparse import ArgumentParser

        from refine.config import field_errors
        from refine.training.config import RunConfig, add_run_arguments

        parser = ArgumentParser(prog, description=f"{description}. {STOPPING}", exit_on_error=False)
        if "--print_config" not in names:  # it would print "resume" too
            parser.add_argument("--resume", action="store_true", help=RESUMING)
        add_run_arguments(parser)
        with field_errors(RunConfig, "config"):
            parser.parse_args(words)
        return
    config = _read_config(words, resume, prog)
    check_out_folder(config.out)

    from refine.runtime import is_first
    from refine.training.run_folder import last_checkpoint
    from refine.training.stop import stop_signals
    from refine.training.train import train

    with stop_signals() as stop:
        before = last_checkpoint(config.out)
        folder = train(config, resume, stop=stop)
    if stop.signal is not None and stop.step is not None:
        sys.exit(128 + stop.signal)
    if is_first() and folder != before:
        print(f"written to {folder}")


def _read_config(words: Sequence[str], resume: bool, prog: str) -> RunConfig:
    """Parse a command line; the config of a resumed run is read from its folder."""
    from refine.training.config import RunConfig, load_run, parse_run
    from refine.training.config_files import main_names
    from refine.training.run_folder import last_checkpoint

    parser = Parser(prog, add_help=False, allow_abbrev=False)
    parser.add_argument("--config", action="append")
    parser.add_argument("--out", default=RunConfig.out)
    known, others = parser.parse_known_args(words)
    if known.config:
        return parse_run(words)
    if not resume:
        for word in others:
            if word.startswith("--") and (hint := did_you_mean(word.split("=")[0], ["--config"])):
                raise RefineError(f"{word}: unknown option{hint}")
        raise RefineError(
            f"--config: choose a config: a YAML file, or one of refine's own, such as {', '.join(main_names())}; "
            f"docs/train.md describes them"
        )
    last = last_checkpoint(known.out)
    if last is None:
        raise RefineError(f"{known.out}: holds no run to resume; check --out, or give --config to start a run")
    return load_run(last / "run.json", [*words, f"--out={known.out}"])
