"""Options, and checks of them, which several commands share."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refine.errors import RefineError

if TYPE_CHECKING:  # their packages import torch, which would delay every --help
    from refine.formats.raw import ImageOptions
    from refine.fusion.config import FusionConfig

FUSION = (
    "score_threshold",
    "overlap_threshold",
    "stuff_area",
    "sigma",
    "unknown_erasing",
    "ue_threshold",
    "ue_region",
)

PIPE_CLOSED = 141
"""Exit code of a program whose reader has gone: 128 + SIGPIPE."""

MOST = 2**31 - 1
"""Largest whole number that an option takes."""


def count_from(least: int, most: int = MOST) -> Callable[[str], int]:
    """Return an argparse type for whole numbers from `least` to `most`."""

    def count(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            expected = f"from {least}" if most == MOST and number < least else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"{text!r:.40}: expected a whole number {expected}")
        return number

    return count


def positive(text: str) -> float:
    """Convert a finite number above 0, as an argparse type."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r:.40}: expected a number above 0")
    return number


def add_threads(parser: Any) -> None:
    """Give a parser, or a group of its arguments, `--threads`; see `refine.runtime.set_threads`."""
    parser.add_argument(
        "--threads",
        type=count_from(1, 1024),
        help="CPU threads (default: OMP_NUM_THREADS if set, else one per physical core that is free to use)",
    )


def print_tables(*tables: Any, width: int = 120) -> None:
    """Print tables of rich, as wide as the terminal; `width` characters into a file or a pipe, which have none."""
    from rich.console import Console

    class _Console(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # which all commands treat alike

    _Console(width=None if sys.stdout.isatty() else width, markup=False, emoji=False).print(*tables)


def require_paths(paths: Iterable[str | Path | None]) -> None:
    """Raise RefineError if an input is missing, before anything heavy is imported."""
    for path in paths:
        if path and not Path(path).exists():
            raise RefineError(f"{path}: cannot be read (No such file or directory); check the path")


def refuse_overwriting(
    option: str, written: Iterable[str | Path | None], read: Iterable[str | Path | None]
) -> None:
    """Raise RefineError, before the work, where a file (or folder of files) to be written is one that is read."""
    given = {Path(path).resolve() for path in read if path and Path(path).exists()}
    for path in written:
        if path and Path(path).resolve() in given:
            raise RefineError(f"{option} {path}: is also an input file; choose a different path")


def add_fusion(parser: Any, default: FusionConfig | None = None) -> None:
    """Give a parser, or a group of its arguments, one option for each of `FUSION`.

    Args:
        parser: to add them to.
        default: values to name in the help; None for those of a checkpoint.
    """

    def told(name: str) -> str:
        return "the checkpoint's" if default is None else f"{getattr(default, name)}"

    def add(name: str, what: str, **how: Any) -> None:
        parser.add_argument(f"--{name.replace('_', '-')}", help=f"{what} (default: {told(name)})", **how)

    add("score_threshold", "drop instances below, 0-1", type=float)
    add("overlap_threshold", "drop instances of which more is covered, 0-1", type=float)
    add("stuff_area", "pixels below which a class of stuff is dropped", type=count_from(0))
    add("sigma", "of soe", type=float)
    add("unknown_erasing", "uncertain regions become unknown", action=argparse.BooleanOptionalAction)
    add("ue_threshold", "mean confidence below which they do, 0-1", type=float)
    add("ue_region", "where that mean is taken", choices=["core", "dilated"])


def fusion_changes(options: argparse.Namespace) -> dict[str, Any]:
    """The thresholds of fusion that were given, by name."""
    return {name: getattr(options, name) for name in FUSION if getattr(options, name) is not None}


def add_image_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what to read of stacks, channels and images of more than 8 bits."""
    group = parser.add_argument_group("images of several pages or channels, or of more than 8 bits")
    group.add_argument("--page", type=count_from(1), help="page of a stack or frame of an animation, from 1")
    group.add_argument("--channel", type=count_from(1), help="channel to read as grey, from 1")
    group.add_argument(
        "--range",
        nargs="+",
        metavar=("LOW|full", "HIGH"),
        help="values that become black and white, or `full` for all that the data type can hold (default: the "
        "significant bits that the file states, or else percentiles of each image)",
    )


def image_options(options: argparse.Namespace) -> ImageOptions:
    """Return what `add_image_options` asked for; raises RefineError for a range that is none."""
    from refine.formats.raw import ImageOptions

    words = options.range
    if words is None or words == ["full"]:
        return ImageOptions(options.page, options.channel, words and "full")
    try:
        low, high = (float(word) for word in words)
    except ValueError:
        low = high = 0.0
    if not low < high < math.inf or low == -math.inf:
        raise RefineError(f"--range {' '.join(words)}: expected two rising numbers or `full`, after all images")
    return ImageOptions(options.page, options.channel, (low, high))
