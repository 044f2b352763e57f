"""refine import"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from refine.cli.options import check_out_folder, count_from, print_progress, require_paths, tell
from refine.cli.parser import Parser
from refine.errors import RefineError, counted, did_you_mean, shown

if TYPE_CHECKING:
    from refine.data.convert.paint import Counts
    from refine.structures import Categories

VOID = "void"
"""Value of `--background` for unlabelled pixels that stay void."""

DETAILS = """\
Writes OUT/panoptic.json, OUT/segments/ (id-PNGs) and OUT/images/ (links to the images, or copies), for
`refine check-data` and `refine train`. Objects of a panoptic data set do not overlap: where they do, the pixels go
to one of them, and the pixels that others lose are counted. docs/data.md says what each format keeps.

formats and their SOURCE:
"""


def run(arguments: Sequence[str], prog: str, description: str) -> None:
    from refine.data.convert.formats import FORMATS

    options = _parser(prog, description).parse_args(arguments)
    if options.format is None and str(options.source) in FORMATS and not options.source.exists():
        raise RefineError(f"{options.source}: is a format; give SOURCE after it, before options with several names")
    require_paths([options.source, options.images, options.labels, options.categories])

    if options.categories and options.stuff:
        raise RefineError("--stuff: the file of --categories already says which classes are stuff; give only one")
    check_out_folder(options.out, [options.images, options.labels])
    if options.out.resolve().is_relative_to(options.source.resolve()):
        raise RefineError(f"{options.out}: lies in the data set {options.source}; choose a folder outside of it")

    from refine.data.convert.classes import make_categories, read_categories
    from refine.data.convert.dataset import DatasetWriter
    from refine.data.convert.formats import read_source
    from refine.data.convert.paint import Painter
    from refine.data.convert.source import ReadOptions

    def note(text: str) -> None:
        tell("note", text)

    reading = ReadOptions(options.images, options.labels, options.split, options.name, options.page)
    name, source = read_source(options.format, options.source, reading)
    for text in source.notes:
        note(text)
    background = options.background or source.background or VOID
    background = None if background == VOID else background
    ignored = set(options.ignore)
    names = [each.name for each in source.classes]
    if unknown := sorted(ignored.difference(names)):
        similar = did_you_mean(unknown[0], names)
        raise RefineError(f"--ignore: no class is named {', '.join(unknown)}{similar}; correct the names")
    classes = [each for each in source.classes if each.name not in ignored]
    if options.categories:
        categories = read_categories(options.categories, classes, background)
    else:
        categories = make_categories(classes, options.stuff, background, note)
    used = {each.name for each in classes} | {background}
    by_name = {category.name: category for category in categories if category.name in used}
    painter = Painter(by_name, options.overlap, by_name[background] if background else None)
    info = {
        "description": f"converted from {name} by refine import",
        "source": str(options.source.resolve()),
        "overlap": options.overlap,
        "ignored": sorted(ignored),
        "background": background,
    }
    writer = DatasetWriter(options.out, categories, painter, info, copy=options.copy, resume=options.resume)
    counts = writer.write(source.samples, print_progress if sys.stderr.isatty() else None)
    for kind, number in sorted(source.skipped.items()):
        note(f"skipped: {number} × {kind}")
    if name == "labels" and counts.objects <= counts.images > 1:
        note("no image has two objects; label images with 0 and 1 (or 255) alone do not separate objects")
    _report(counts, categories, background, options.out)


def _parser(prog: str, description: str) -> argparse.ArgumentParser:
    from refine.data.convert.formats import FORMATS
    from refine.data.convert.paint import OVERLAPS

    formats = "\n".join(f"  {name:14}{entry.source}" for name, entry in FORMATS.items())
    parser = Parser(
        prog,
        description=f"{description}.\n\n{DETAILS}{formats}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "format",
        nargs="?",
        choices=FORMATS,
        metavar="FORMAT",
        help="may be omitted if exactly one format matches SOURCE",
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="file or folder of the data set")
    parser.add_argument("-o", "--out", type=Path, required=True, help="new folder of the converted data set")
    reading = parser.add_argument_group("reading")
    reading.add_argument("--images", type=Path, help="folder of the images, if it is not where the format has it")
    reading.add_argument("--labels", type=Path, help="labels: folder of the label images of the images in SOURCE")
    reading.add_argument("--split", help="split to convert, such as train or val")
    reading.add_argument(
        "--class",
        dest="name",
        default="object",
        metavar="NAME",
        help="labels, masks: class of the objects (object)",
    )
    reading.add_argument("--page", type=count_from(1), help="labels: page of label images that are stacks, from 1")
    classes = parser.add_argument_group("classes")
    classes.add_argument("--stuff", nargs="+", default=[], metavar="NAME", help="classes that are not countable")
    classes.add_argument("--ignore", nargs="+", default=[], metavar="NAME", help="classes whose pixels become void")
    classes.add_argument(
        "--background",
        metavar="NAME",
        help=f"stuff class of unlabelled pixels, or `{VOID}` to leave them out of training and evaluation "
        f"(default: background for labels, masks and voc, {VOID} for others)",
    )
    classes.add_argument(
        "--categories", metavar="JSON", help="panoptic JSON whose categories to use, such as that of another split"
    )
    writing = parser.add_argument_group("writing")
    writing.add_argument(
        "--overlap",
        choices=OVERLAPS,
        default=OVERLAPS[0],
        help="which of two overlapping objects gets the pixels (default: the smaller one, stuff last)",
    )
    writing.add_argument("--copy", action="store_true", help="copy the images instead of linking them")
    writing.add_argument("--resume", action="store_true", help="continue a conversion that was stopped")
    return parser


def _report(counts: Counts, categories: Categories, background: str | None, out: Path) -> None:
    """Print what was converted, what was lost, and the next commands."""
    number = counted(len(categories), "category", "categories")
    print(f"{counted(counts.images, 'image')}, {counted(counts.objects, 'object')}, {number}")
    share = counts.lost / max(counts.annotated, 1)
    print(
        f"overlaps: {counts.lost} of {counted(counts.annotated, 'annotated pixel')} lost ({share:.3%}); "
        f"{counted(counts.covered, 'region')} partly and {counts.hidden} fully hidden"
    )
    if counts.empty:
        print(f"without a pixel: {counted(counts.empty, 'region')}, skipped")
    share = counts.gained / max(counts.pixels, 1)
    if background is not None:
        gained = counted(counts.gained, "unlabelled pixel")
        print(f"background: {gained} gained by {shown(background)} ({share:.1%} of all)")
    print(f"void: {counted(counts.void, 'pixel')} ({counts.void / max(counts.pixels, 1):.1%} of all)")
    names = (shlex.quote(str(out / name)) for name in ("images", "panoptic.json", "segments"))
    print("check: refine check-data --images {} --json {} --segments {}".format(*names))
