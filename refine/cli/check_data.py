"""refine check-data"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from refine.cli.datasets import dataset_paths, names_dataset
from refine.cli.options import (
    add_image_options,
    check_out_file,
    count_from,
    image_options,
    print_progress,
    require_paths,
)
from refine.cli.parser import Parser


def run(arguments: Sequence[str], prog: str, description: str) -> None:
    parser = Parser(prog, description=description)
    coco = parser.add_argument_group("COCO panoptic format")
    coco.add_argument("--images", help="folder of images")
    coco.add_argument("--json", help="panoptic JSON")
    coco.add_argument("--segments", help="folder of the panoptic PNGs")
    coco.add_argument("--remap", help="JSON that maps categories to others or to void")
    coco.add_argument("--instances", help="instances JSON with masks that may overlap")
    add_image_options(parser)
    cityscapes = parser.add_argument_group("Cityscapes as downloaded")
    cityscapes.add_argument("--cityscapes", metavar="ROOT", help="folder with leftImg8bit/ and gtFine/")
    cityscapes.add_argument("--split", help="train, val or test")
    parser.add_argument("--out", help="JSON report to write")
    parser.add_argument(
        "--threads", type=count_from(1, 1024), help="reading threads (default: one per core, at most 8)"
    )
    options = parser.parse_args(arguments)
    if options.cityscapes:
        if not options.split or not names_dataset(options):
            parser.error("--cityscapes needs --split, and excludes the options for COCO panoptic format")
    elif options.split or not names_dataset(options):
        parser.error("give --images, --json and --segments, or --cityscapes and --split")

    require_paths([*dataset_paths(options), options.cityscapes])
    check_out_file("--out", options.out, [options.json, options.remap, options.instances])

    from refine.data.check.dataset import check_cityscapes, check_dataset
    from refine.errors import RefineError, counted
    from refine.files import write_json

    progress = print_progress if sys.stderr.isatty() else None
    if options.cityscapes:
        report = check_cityscapes(options.cityscapes, options.split, threads=options.threads, progress=progress)
    else:
        report = check_dataset(
            options.images,
            options.json,
            options.segments,
            options.remap,
            options.instances,
            options=image_options(options),
            threads=options.threads,
            progress=progress,
        )
    print(report.text())
    if options.out:
        write_json(options.out, report.to_json(), indent=1)
    if not report.ok:
        raise RefineError(f"{report.source}: {counted(len(report.errors), 'error')}; see the lines above")
