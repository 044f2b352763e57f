"""Working on picture after picture, which `predict` and `explain` have in common."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from refine.cli.options import add_fusion
from refine.errors import RefineError


def add_arguments(parser: argparse.ArgumentParser, out: str) -> None:
    """Pictures, model and thresholds; `out` says what the output folder is for."""
    parser.add_argument(
        "source", nargs="+", help="pictures, folders of them (not their subfolders), or patterns in quotes"
    )
    parser.add_argument("-o", "--out", required=True, help=out)
    parser.add_argument(
        "--checkpoint", default="nuclei", help="name of a shipped model, or a folder (default: nuclei)"
    )
    parser.add_argument("--device", help="cpu, cuda, … (default: the GPU if there is one)")
    add_fusion(parser)


def for_each(files: Sequence[Path], work: Callable[[Path], str]) -> int:
    """Print what `work` says of each picture; one that fails is told and passed over.

    Returns:
        How many failed.

    Raises:
        RefineError: all did.
    """
    from rich.progress import track

    failed = 0
    for path in track(files, "pictures", disable=not sys.stderr.isatty()):
        try:
            print(f"{path}: {work(path)}")
        except RefineError as error:  # the other pictures are still worth having
            failed += 1
            named = str(path) in str(error)
            print(f"refine: error: {error if named else f'{path}: {error}'}", file=sys.stderr)
    if failed == len(files):
        raise RefineError(f"none of the {len(files)} pictures could be used; nothing is written")
    return failed


def finish(failed: int, files: Sequence[Path], out: str, what: str) -> None:
    """Say where the results are; raises RefineError if some are missing."""
    if failed:
        raise RefineError(f"{failed} of {len(files)} pictures failed; the {what} of the others are in {out}")
    print(f"{what} in {out}")
