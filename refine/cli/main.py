"""Command line. Each command imports its dependencies when it runs, so that `refine --help` is instant."""

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
    "predict": "segment images; write COCO panoptic PNGs and JSON, and overlays",
    "explain": "show, for each fusion rule, which instance lies in front and what was erased (PNG and JSON)",
    "serve": "start a local web page for segmenting images and inspecting the results",
    "evaluate": "compute PQ (and AP) of a model on a data set, or PQ of result files",
    "fuse": "fuse instances and semantic maps of any model into panoptic results",
    "train": "train a model on COCO panoptic or Cityscapes data, or resume a run",
    "check-data": "report every error of a data set before training",
    "benchmark": "measure parameters, GFLOPs, seconds per stage and memory of models",
    "models": "list the available models",
    "reproduce": "train and evaluate the rows of the paper's tables, on any data set",
    "synthesize": "generate a data set of scenes with known depth order",
    "convert": "import detectron2, torchvision and Caffe2 weights",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        Exit code: 0 for success; 1 after an error that the user can fix, reported in one line; 130 after Ctrl-C;
        141 if the reader of the output has closed the pipe. Invalid arguments exit with 2, SIGTERM with 143.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names that the terminal cannot show
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="refine",
        description="Panoptic segmentation by prediction fusion.",
        epilog="Run `refine COMMAND --help` for the options of a command.",
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
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # receives the final flush at exit
        return PIPE_CLOSED
    except Exception as error:
        if (problem := _problem(error)) is None:
            raise
        print(f"refine: error: {printable(problem)}", file=sys.stderr)
        return 1
    return 0


def _problem(error: Exception) -> str | None:
    """Return the one-line message of an error that the user can fix; None for a programming error."""
    if isinstance(error, RefineError):
        return str(error)
    if is_out_of_memory(error):
        return "not enough memory; use a smaller input or a machine with more memory"
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return None


if __name__ == "__main__":
    sys.exit(main())
