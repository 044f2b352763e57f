"""The command line. Commands import what they need when they run, so that `refine --help` is instant."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence

from refine import __version__
from refine.cli.options import PIPE_CLOSED
from refine.errors import RefineError, is_out_of_memory, printable

COMMANDS = {
    "predict": "panoptic results of pictures: PNG + JSON as COCO has them, and overlays to look at",
    "explain": "who lies in front of whom under each rule of fusion, drawn and as JSON, and what was erased",
    "serve": "a web page: drop a picture, move the thresholds, point at segments",
    "evaluate": "PQ (and AP) of a model on a data set, or of result files without any model",
    "fuse": "only the fusion: instances and semantic maps of any model to panoptic results",
    "train": "train a model on your own COCO panoptic data, or go on with a run",
    "check-data": "name every fault of a data set before an hour of training is lost",
    "benchmark": "parameters, arithmetic, seconds per image stage by stage, and memory of models",
    "models": "the models that come with the package",
    "reproduce": "train and measure the rows of tables of the paper, on any data",
    "synthesize": "write a data set of procedural scenes with known depth order",
    "convert": "turn weights of detectron2 or torchvision into a model of ours",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0; 1 after an error that the user can fix, reported in one line; 130 when interrupted; 141 when the
        reader of the output has gone. Wrong arguments exit with 2, SIGTERM during `predict` with 143.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files that a terminal cannot show
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="refine",
        description="Panoptic segmentation by prediction fusion.",
        epilog="`refine COMMAND --help` tells the options of one command.",
    )
    parser.add_argument("--version", action="version", version=f"refine {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)
    try:
        try:
            name = parser.parse_args(arguments[:1]).command
            module = importlib.import_module(f"refine.cli.{name.replace('-', '_')}")
            module.run(arguments[1:], f"refine {name}", COMMANDS[name])
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where what is left is flushed to at exit
        return PIPE_CLOSED
    except Exception as error:
        if (problem := _problem(error)) is None:
            raise
        print(f"refine: error: {printable(problem)}", file=sys.stderr)
        return 1
    return 0


def _problem(error: Exception) -> str | None:
    """What to tell of an error that is not the program's own fault, in one line; None for any other."""
    if isinstance(error, RefineError):
        return str(error)
    if is_out_of_memory(error):
        return "there is not enough memory; take a smaller input, or a machine with more"
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return None


if __name__ == "__main__":
    sys.exit(main())
