"""Options that choose a data set with ground truth."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from refine.cli.options import image_options
from refine.errors import RefineError

if TYPE_CHECKING:
    from refine.data.config import DatasetConfig


def add_dataset(parser: Any, instances: str) -> None:
    """Add the options for the files of a data set to a parser or an argument group.

    Args:
        parser: parser or argument group; `add_image_options` adds further ones.
        instances: what masks that may overlap are for.
    """
    parser.add_argument("--images", help="folder of images")
    parser.add_argument("--json", help="panoptic JSON")
    parser.add_argument("--segments", help="folder of the panoptic PNGs")
    parser.add_argument("--remap", help="JSON that maps categories to others or to void")
    parser.add_argument("--instances", help=f"instances JSON with masks that may overlap, {instances}")
    parser.add_argument(
        "--cityscapes", metavar="ROOT", help="folder with leftImg8bit/ and gtFine/, instead of COCO panoptic data"
    )


def dataset_paths(options: argparse.Namespace) -> list[str | None]:
    """Return the files and folders that the options name, without that of Cityscapes."""
    return [options.images, options.json, options.segments, options.remap, options.instances]


def coco_options(options: argparse.Namespace) -> list[Any]:
    """Return the values of all options that are for COCO panoptic data alone."""
    return [*dataset_paths(options), options.exif, options.page, options.channel, options.range]


def names_dataset(options: argparse.Namespace) -> bool:
    """Return whether the options name one data set: COCO panoptic data completely, or Cityscapes alone."""
    if options.cityscapes:
        return not any(coco_options(options))
    return all((options.images, options.json, options.segments))


def dataset_config(options: argparse.Namespace) -> DatasetConfig:
    """Return the data set that the options name; `options.split` is the split of Cityscapes.

    Raises:
        RefineError: `--range full`, which is no range for all images.
    """
    from refine.data.config import DatasetConfig

    images = image_options(options)
    if images.range == "full":
        raise RefineError("--range full: expected two numbers, such as 0,65535")
    if options.cityscapes:
        return DatasetConfig(kind="cityscapes", root=options.cityscapes, split=options.split)
    return DatasetConfig(
        images=options.images,
        json=options.json,
        segments=options.segments,
        remap=options.remap,
        instances=options.instances,
        exif=options.exif,
        page=images.page,
        channel=images.channel,
        range=images.range,
    )
