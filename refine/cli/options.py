"""Options, and checks of them, which several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refine.errors import RefineError

if TYPE_CHECKING:  # its package imports torch, which would delay every --help
    from refine.fusion.config import FusionConfig

FUSION = ("score_threshold", "overlap_threshold", "stuff_area", "sigma", "unknown_erasing", "ue_threshold")


def count_from(least: int) -> Callable[[str], int]:
    """A type for whole numbers from `least` on."""

    def count(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from {least}")
        return number

    return count


def refuse_overwriting(
    option: str, written: Iterable[str | Path | None], read: Iterable[str | Path | None]
) -> None:
    """Raise RefineError, before the work, where a file (or folder of files) to be written is one that is read."""
    given = {Path(path).resolve() for path in read if path and Path(path).exists()}
    for path in written:
        if path and Path(path).resolve() in given:
            raise RefineError(f"{option} {path}: is an input; name another")


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
    add("stuff_area", "pixels below which a class of stuff is dropped", type=int)
    add("sigma", "of soe", type=float)
    add("unknown_erasing", "uncertain regions become unknown", action=argparse.BooleanOptionalAction)
    add("ue_threshold", "mean confidence below which they do, 0-1", type=float)


def fusion_changes(options: argparse.Namespace) -> dict[str, Any]:
    """The thresholds of fusion that were given, by name."""
    return {name: getattr(options, name) for name in FUSION if getattr(options, name) is not None}
