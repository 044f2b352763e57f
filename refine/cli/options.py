"""Options that several commands share, and their validation."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from refine.bounds import Bounds
from refine.cli.given import as_given
from refine.errors import RefineError, counted, printable
from refine.storage import Location, Url, location

if TYPE_CHECKING:  # their packages import torch, which would delay every --help
    from refine.formats.raw import ImageOptions
    from refine.fusion.config import FusionConfig
    from refine.inference.on_ray import Cluster

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
"""Exit code if the reader of the output has closed the pipe: 128 + SIGPIPE."""

MOST = 2**31 - 1
"""Largest integer that an option accepts."""


LONGEST = 1000
"""Most characters of a message: its end, which names the fix, stays on the screen whatever a file holds."""


def tell(kind: Literal["note", "error"], text: str) -> None:
    """Print one line on stderr: control characters escaped, and the middle left out if it is too long."""
    line = printable(as_given(text))
    if len(line) > LONGEST:
        line = f"{line[: LONGEST // 2]} … {line[3 - LONGEST // 2 :]}"
    print(f"refine: {kind}: {line}", file=sys.stderr)


def print_progress(done: int, total: int) -> None:
    """Replace the line of progress on a terminal."""
    print(f"\r{done} of {counted(total, 'image')}", end="\n" if done == total else "", file=sys.stderr, flush=True)


def count_from(least: int, most: int = MOST) -> Callable[[str], int]:
    """Return an argparse type for integers from `least` to `most`."""

    def count(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            expected = f"from {least}" if most == MOST and number < least else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"{text!r:.40}: expected an integer {expected}")
        return number

    return count


def number_in(bounds: Bounds) -> Callable[[str], float]:
    """Return an argparse type for numbers in a range."""

    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not bounds.hold(value):
            raise argparse.ArgumentTypeError(f"{text!r:.40}: expected {bounds}")
        return value

    return number


positive = number_in(Bounds(above=0))
"""Argparse type for numbers above 0."""
fraction = number_in(Bounds(least=0, most=1))
"""Argparse type for numbers from 0 to 1."""


def add_device(parser: Any) -> None:
    """Add `--device` and `--precision` to a parser or an argument group."""
    parser.add_argument("--device", help="cpu, cuda, … (default: the GPU if there is one)")
    parser.add_argument(
        "--precision",
        choices=("32", "bf16", "fp16"),
        default="32",
        help="bf16 takes 0.6 to 0.8 of the time on processors that compute in it, at the same PQ (default: 32)",
    )


def add_threads(parser: Any) -> None:
    """Add `--threads` to a parser or an argument group; see `refine.runtime.prepare_cpu`."""
    parser.add_argument(
        "--threads",
        type=count_from(1, 1024),
        help="CPU threads (default: OMP_NUM_THREADS, else one per available physical core)",
    )


def print_tables(*tables: Any, width: int = 120) -> None:
    """Print rich tables, as wide as the terminal, or `width` characters wide if the output is a file or a pipe."""
    from rich.console import Console

    class _Console(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # handled in `main` for all commands

    _Console(width=None if sys.stdout.isatty() else width, markup=False, emoji=False).print(*tables)


def require_paths(paths: Iterable[str | Path | None]) -> None:
    """Raise RefineError if an input does not exist, before torch is imported."""
    for path in paths:
        if path and not location(path).exists():
            raise RefineError(f"{path}: does not exist; check the path")


def refuse_overwriting(
    option: str, written: Iterable[str | Location | None], read: Iterable[str | Location | None]
) -> None:
    """Raise RefineError if an output path is also an input path.

    Args:
        option: option that names the output, for the message.
        written: files or folders to be written; None and "" are ignored.
        read: input files or folders; None and "" are ignored.
    """
    inputs = _resolved(read)
    for path in written:
        if path and location(path).resolve() in inputs:
            raise RefineError(f"{option} {path}: is also an input file; choose a different path")


def _resolved(paths: Iterable[str | Location | None]) -> set[Location]:
    """Return the resolved paths of the files and folders that exist, and all URLs; None and "" are ignored."""
    places = (location(path) for path in paths if path)
    return {place.resolve() for place in places if isinstance(place, Url) or place.exists()}


def check_out_file(option: str, out: str | None, read: Iterable[str | Location | None]) -> None:
    """Raise RefineError, before the work, if an output file is a folder or an input file; None is ignored."""
    if not out:
        return
    if Path(out).is_dir():
        raise RefineError(f"{option} {out}: is a folder; expected the path of a file")
    check_above(option, out)
    refuse_overwriting(option, [out], read)


def check_above(option: str, out: str | Path, *, folder: bool = False) -> None:
    """Raise RefineError, before the work, if an output path lies below a file; a `folder` also if it is a file."""
    place = location(out)
    if isinstance(place, Path):
        above = place.absolute().parents
        existing = next(path for path in ((place, *above) if folder else above) if path.exists())
        if not existing.is_dir():
            raise RefineError(
                f"{option} {out}: {existing} is a file; choose {'a folder' if folder else 'another path'}"
            )


def check_out_folder(out: str | Path, read: Iterable[str | Location | None] = ()) -> None:
    """Raise RefineError, before the work, if an output folder is a file, lies in one, or is also an input folder.

    Args:
        out: value of `--out`.
        read: input folders; None and "" are ignored.
    """
    check_above("--out", out, folder=True)
    if location(out).resolve() in _resolved(read):
        raise RefineError(f"--out {out}: is also an input folder; choose another one, to keep them apart")


def check_results_out(out: str | Path, read: Iterable[str | Location | None], names: Iterable[str] = ()) -> None:
    """Raise RefineError, before the work, as `check_out_folder` and `check_results_folder` do."""
    from refine.formats.results_folder import check_results_folder

    check_out_folder(out, read)
    check_results_folder(location(out), names)


def add_fusion(parser: Any, default: FusionConfig | None = None) -> None:
    """Add one option for each name in `FUSION`.

    Args:
        parser: parser or argument group to add the options to.
        default: defaults shown in the help; None if the checkpoint's values are the defaults.
    """

    def add(name: str, text: str, **keywords: Any) -> None:
        value = "the checkpoint's" if default is None else getattr(default, name)
        parser.add_argument(f"--{name.replace('_', '-')}", help=f"{text} (default: {value})", **keywords)

    add("score_threshold", "minimum score of an instance, 0-1", type=fraction)
    add("overlap_threshold", "drop an instance if more than this fraction of it is covered, 0-1", type=fraction)
    add("stuff_area", "minimum area of a stuff segment in pixels", type=count_from(0))
    add("sigma", "width of the soe penalty", type=positive)
    add("unknown_erasing", "erase uncertain regions to unknown", action=argparse.BooleanOptionalAction)
    add("ue_threshold", "erase regions whose mean confidence is below this, 0-1", type=fraction)
    add("ue_region", "pixels of a region over which the mean is taken", choices=["core", "dilated"])


def fusion_changes(options: argparse.Namespace) -> dict[str, Any]:
    """Return the fusion thresholds given on the command line, by field name."""
    return {name: getattr(options, name) for name in FUSION if getattr(options, name) is not None}


def add_image_options(parser: argparse.ArgumentParser, *, all_pages: bool = False) -> None:
    """Add the options for image stacks, multichannel images, images of more than 8 bits and rotated images.

    Args:
        parser: parser to add the options to.
        all_pages: whether `--page all` is possible.
    """
    group = parser.add_argument_group("images with several pages or channels, more than 8 bits or an EXIF rotation")
    group.add_argument(
        "--page",
        type=_page if all_pages else count_from(1),
        metavar="N|all" if all_pages else "N",
        help="page of a stack or frame of an animation or video, from 1"
        + (", or `all` (the default for videos)" if all_pages else ""),
    )
    group.add_argument(
        "--exif",
        choices=["shown", "stored"],
        help="how images with an EXIF rotation are annotated and read: rotated as viewers show them, or as stored "
        "(default: as fits the sizes of the annotation, else shown)",
    )
    group.add_argument("--channel", type=count_from(1), help="channel to read as greyscale, from 1")
    group.add_argument(
        "--range",
        type=_range,
        metavar="LOW,HIGH|full",
        help="values mapped to black and white, or `full` for the range of the data type (default: the "
        "significant bits stated in the file, else percentiles of each image)",
    )


def _page(text: str) -> int | str:
    return text if text == "all" else count_from(1)(text)


def _range(text: str) -> tuple[float, float] | str:
    if text == "full":
        return text
    try:
        low, high = (float(word) for word in text.split(","))
    except ValueError:
        low = high = 0.0
    if not -math.inf < low < high < math.inf:
        raise argparse.ArgumentTypeError(
            f"{text!r:.60}: expected two increasing numbers with a comma, such as 0,4095, or full"
        )
    return low, high


def image_options(options: argparse.Namespace) -> ImageOptions:
    """Return the values of `add_image_options`."""
    from refine.formats.raw import ImageOptions

    page = None if options.page == "all" else options.page
    return ImageOptions(page, options.channel, options.range, options.exif)


def add_ray(parser: Any) -> None:
    """Add `--ray` to a parser or an argument group; see `connect`."""
    parser.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="run on a Ray cluster (default: RAY_ADDRESS, else one started on this machine); every machine needs "
        "the same paths; --threads is per actor (default: 1)",
    )


def connect(options: argparse.Namespace) -> Cluster | None:
    """Connect to the cluster of `--ray`; None without this option."""
    if options.ray is None:
        return None
    from refine.inference.on_ray import Cluster

    return Cluster(options.ray, options.device, options.threads or 1).connect()
