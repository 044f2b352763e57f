"""Processing of many images, shared by `predict` and `explain`."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Protocol, TypeVar

from refine.cli.given import as_given
from refine.cli.networks import add_model
from refine.cli.options import PIPE_CLOSED, add_device, add_fusion, add_threads, tell
from refine.cli.sources import local_sources
from refine.errors import RefineError, WriteError, counted, is_out_of_memory, printable
from refine.formats.image_list import ImageFile, list_images, list_pages
from refine.storage import Location, write_json

T = TypeVar("T")

EVERY = 30.0
"""Seconds between two progress lines if the output is not a terminal."""


def add_arguments(parser: argparse.ArgumentParser, out: str) -> None:
    """Add the options for images, model and thresholds; `out` is the help text of the output folder."""
    parser.add_argument(
        "source",
        nargs="+",
        help="images, videos, folders of images, quoted patterns, http(s) addresses, or - for stdin",
    )
    parser.add_argument("--recursive", action="store_true", help="include the subfolders of folders")
    parser.add_argument("-o", "--out", required=True, help=out)
    add_model(parser)
    add_device(parser)
    add_threads(parser)
    add_fusion(parser)


def find_images(options: argparse.Namespace) -> list[ImageFile]:
    """List the images given on the command line, without those in the output folder; see `list_pages`."""
    sources = local_sources(options.source)
    files = list_images(sources, recursive=options.recursive, skip=options.out, notify=note)
    return list_pages(files, options.page)


def note(text: str) -> None:
    """Print a remark to stderr."""
    tell("note", text)


@dataclass(frozen=True)
class Failure:
    """Image that could not be processed, and a message that names it and the fix."""

    file: ImageFile
    problem: str


def for_each(
    files: Sequence[ImageFile],
    outcomes: Iterable[tuple[ImageFile, T | Exception]],
    use: Callable[[T], str],
    failures: list[Failure],
) -> None:
    """Use the outcome of each image, and print the line that `use` returns; report an image that failed.

    Args:
        files: all images, for the progress.
        outcomes: images with their results, or with the exceptions of those that failed; see `run_pipeline`.
        use: called with each result.
        failures: receives the images that failed.

    Raises:
        WriteError: results cannot be written, so that the next image would fail too.
        KeyboardInterrupt, SystemExit: interrupted, or terminated by SIGTERM or SIGHUP.
    """
    done = 0
    with _termination(), progress(len(files)) as advance:
        try:
            for file, outcome in outcomes:
                try:
                    if isinstance(outcome, Exception):
                        raise outcome
                    print(f"{printable(as_given(str(file.path)))}: {use(outcome)}")
                    done += 1
                except WriteError:
                    raise
                except Exception as error:
                    failures.append(Failure(file, as_given(_problem(file, error))))
                    tell("error", failures[-1].problem)
                advance()
        except BrokenPipeError as error:  # stop as SIGPIPE would; finished results are kept
            raise SystemExit(PIPE_CLOSED) from error
        except (KeyboardInterrupt, SystemExit):
            note(f"stopped after {done} of {counted(len(files), 'image')}")
            raise


def check_any(failures: Sequence[Failure], files: Sequence[ImageFile]) -> None:
    """Raise RefineError if all images failed."""
    if files and len(failures) == len(files):
        raise RefineError(f"no image could be used ({counted(len(files), 'image')} given)")


def one_by_one(
    files: Iterable[ImageFile], work: Callable[[ImageFile], T]
) -> Iterator[tuple[ImageFile, T | Exception]]:
    """Yield each image with what `work` returns or raises, without a pipeline."""
    for file in files:
        try:
            outcome: T | Exception = work(file)
        except Exception as error:
            outcome = error
        yield file, outcome


def _problem(file: ImageFile, error: Exception) -> str:
    """Return the message of an error that concerns one image; raise any other error."""
    if is_out_of_memory(error):
        return f"{file.path}: does not fit into memory; make it smaller or cut it into tiles"
    if not isinstance(error, RefineError):
        raise error
    message = str(error)
    if str(file.path) in message:
        return message
    if file.page is None:  # else the name of the page says more than the path of its file
        message = message.removeprefix(f"{file.name}: ")
    return f"{file.path}: {message}"


def write_failures(path: Location, failures: Sequence[Failure]) -> None:
    """Write the images that failed, with ids and messages, as JSON; without failures, remove an earlier file."""
    if failures:
        content = [{"id": f.file.id, "file_name": f.file.name, "error": f.problem} for f in failures]
        write_json(path, content, indent=1)
    else:
        path.unlink(missing_ok=True)


def finish(failures: Sequence[Failure], files: Sequence[ImageFile], out: str, what: str, hint: str = "") -> None:
    """Print where the results are, and a hint; raise RefineError if some images failed."""
    check_any(failures, files)
    if failures:
        raise RefineError(
            f"{len(failures)} of {counted(len(files), 'image')} failed; the {what} for the others are in {out}"
        )
    print(f"{what} in {out}{hint}")


@contextmanager
def _termination() -> Iterator[None]:
    """Exit the block cleanly on SIGTERM and SIGHUP, with exit code 128 + the signal's number."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set signal handlers
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
def progress(total: int, unit: str = "images") -> Iterator[_Advance]:
    """Show the number of finished images, images per second and time left: a bar on a terminal, else lines."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
        start = time.monotonic()
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(unit, total=total, rate="")

            def advance() -> None:
                bar.advance(task)
                rate = bar.tasks[0].completed / (time.monotonic() - start)
                bar.update(task, rate=f"{rate:.2f} {unit}/s")

            yield advance
    else:
        yield _Lines(total, unit)


class _Lines:
    """Progress printed as one line every `EVERY` seconds."""

    def __init__(self, total: int, unit: str) -> None:
        self.total, self.unit, self.done = total, unit, 0
        self.start = self.last = time.monotonic()

    def __call__(self) -> None:
        self.done += 1
        now = time.monotonic()
        if now - self.last >= EVERY and self.done < self.total:
            self.last = now
            rate = self.done / (now - self.start)
            left = (self.total - self.done) / rate
            note(f"{self.done} of {self.total} {self.unit}, {rate:.2f} {self.unit}/s, {left / 60:.1f} min left")
