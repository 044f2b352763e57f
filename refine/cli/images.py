"""Working on image after image, which `predict` and `explain` have in common."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

from refine.checkpoint.find import SHIPPED, find_model, shipped_models
from refine.cli.options import PIPE_CLOSED, add_fusion, add_threads
from refine.errors import RefineError, WriteError, is_out_of_memory, printable
from refine.files import read_json
from refine.formats.image_list import ImageFile, list_images

EVERY = 30.0
"""Seconds between two lines of progress where there is no terminal."""


def add_arguments(parser: argparse.ArgumentParser, out: str) -> None:
    """Add images, model and thresholds; `out` says what the output folder is for."""
    parser.add_argument("source", nargs="+", help="images, folders of them, or patterns in quotes")
    parser.add_argument("--recursive", action="store_true", help="read the subfolders of folders too")
    parser.add_argument("-o", "--out", required=True, help=out)
    parser.add_argument("--checkpoint", help="name of a shipped model (`refine models`), or a folder; required")
    parser.add_argument("--device", help="cpu, cuda, … (default: the GPU if there is one)")
    add_threads(parser)
    add_fusion(parser)


def check_model(options: argparse.Namespace) -> None:
    """Raise RefineError unless a model is named: none is right for micrographs and photographs both."""
    if not options.checkpoint:
        data = {name: read_json(SHIPPED / name / "config.json").get("data") for name in shipped_models()}
        models = ", ".join(f"{name} (trained on {what})" for name, what in data.items())
        raise RefineError(f"--checkpoint: choose a model: {models}, or a folder that `refine train` wrote")
    find_model(options.checkpoint)


def find_images(options: argparse.Namespace) -> list[ImageFile]:
    """List the images that the options name; the folder of the results is left out."""
    return list_images(options.source, recursive=options.recursive, skip=options.out, tell=note)


def note(text: str) -> None:
    """Print a remark that is no error."""
    print(f"refine: note: {printable(text)}", file=sys.stderr)


def for_each(files: Sequence[ImageFile], work: Callable[[ImageFile], str]) -> int:
    """Print what `work` returns for each image; one that fails is reported and passed over.

    Returns:
        How many failed.

    Raises:
        WriteError: results cannot be written, so that going on is of no use.
        RefineError: all images failed.
        KeyboardInterrupt, SystemExit: interrupted, or terminated by SIGTERM or SIGHUP.
    """
    failed = done = 0
    with _termination(), _progress(len(files)) as advance:
        try:
            for file in files:
                try:
                    print(f"{printable(str(file.path))}: {work(file)}")
                    done += 1
                except WriteError:
                    raise
                except Exception as error:
                    problem = str(error)
                    if is_out_of_memory(error):
                        problem = f"{file.path}: does not fit into memory; make it smaller or cut it into tiles"
                    elif not isinstance(error, RefineError):
                        raise
                    elif str(file.path) not in problem:
                        problem = f"{file.path}: {problem}"
                    failed += 1
                    print(f"refine: error: {printable(problem)}", file=sys.stderr)
                advance()
        except BrokenPipeError as error:  # nobody reads on: stop as the signal would have it, with what is finished
            raise SystemExit(PIPE_CLOSED) from error
        except (KeyboardInterrupt, SystemExit):
            note(f"stopped after {done} of {len(files)} images")
            raise
    if files and failed == len(files):
        raise RefineError(f"none of the {len(files)} images could be used")
    return failed


def finish(failed: int, files: Sequence[ImageFile], out: str, what: str) -> None:
    """Say where the results are; raises RefineError if some are missing."""
    if failed:
        raise RefineError(f"{failed} of {len(files)} images failed; the {what} of the others are in {out}")
    print(f"{what} in {out}")


@contextmanager
def _termination() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does, with the exit code 128 + the signal's number."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {getattr(signal, name): signal.signal(getattr(signal, name), stop) for name in names}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Advance(Protocol):
    def __call__(self) -> None: ...


@contextmanager
def _progress(total: int) -> Iterator[_Advance]:
    """Show images done, images per second and the time left: as a bar on a terminal, else as lines."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
        start = time.monotonic()
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("images", total=total, rate="")

            def advance() -> None:
                bar.advance(task)
                rate = bar.tasks[0].completed / (time.monotonic() - start)
                bar.update(task, rate=f"{rate:.2f} images/s")

            yield advance
    else:
        yield _Lines(total)


class _Lines:
    """Progress as one line every `EVERY` seconds."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.start = self.last = time.monotonic()

    def __call__(self) -> None:
        self.done += 1
        now = time.monotonic()
        if now - self.last >= EVERY and self.done < self.total:
            self.last = now
            rate = self.done / (now - self.start)
            left = (self.total - self.done) / rate
            note(f"{self.done} of {self.total} images, {rate:.2f} images/s, {left / 60:.1f} min left")
