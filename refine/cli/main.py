"""Command line. Each command imports its dependencies when it runs, so that `refine --help` is instant."""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from refine import __version__
from refine.cli.options import PIPE_CLOSED, tell
from refine.cli.parser import Parser
from refine.errors import RefineError, is_out_of_memory

COMMANDS = {
    "predict": "segment images; write COCO panoptic PNGs and JSON, and overlays",
    "merge": "join the results of refine predict --shard 1/N … N/N into one panoptic.json",
    "explain": "show, for each fusion rule, which instance lies in front and what was erased (PNG and JSON)",
    "serve": "start a local web page for segmenting images and inspecting the results",
    "evaluate": "compute PQ (and AP) of a model on a data set, or PQ of result files",
    "fuse": "fuse instances and semantic maps of any model into panoptic results",
    "train": "train a model on COCO panoptic or Cityscapes data, or resume a run",
    "train-occlusion": "train an occlusion head for any model on its own detections, for predict --method soe",
    "import": "convert label images, masks and annotations of other tools to COCO panoptic data",
    "check-data": "report every error of a data set before training",
    "benchmark": "measure parameters, GFLOPs, seconds per stage and memory of models",
    "models": "list the available models",
    "reproduce": "train and evaluate the rows of the paper's tables, on any data set",
    "synthesize": "generate a data set of scenes with known depth order",
    "export": "write a model with its fusion as one ONNX file, or as a torch.export program",
    "convert": "import detectron2, torchvision and Caffe2 weights",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        Exit code: 0 for success; 1 after an error that the user can fix, reported in one line; 130 after Ctrl-C;
        141 if the reader of the output has closed the pipe. Invalid arguments exit with 2, SIGTERM with 143.
    """
    _open_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names that the terminal cannot show
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = Parser(
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
        _discard_output()
        return PIPE_CLOSED
    except Exception as error:
        if (problem := _problem(error)) is None:
            raise
        if isinstance(error, OSError) and error.filename is None:
            _discard_output()
        tell("error", problem)
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
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
        return f"the output cannot be written ({error.strerror}); free space or redirect it elsewhere"
    return None


def _open_streams() -> None:
    """Replace closed standard streams, whose numbers would go to the next files opened, by the null device."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def _discard_output() -> None:
    """Send buffered output that cannot be written to the null device, so that flushing it at exit succeeds."""
    with suppress(io.UnsupportedOperation):  # a stream in memory
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
