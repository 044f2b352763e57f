"""Configs of data sets and augmentation. This module does not import torch, so the command line starts fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from refine.bounds import bounded
from refine.errors import RefineError

SMALLEST = 32
"""Minimum side of a training image in pixels: the stride of P5. The norms fail on fewer."""


@dataclass
class AugmentConfig:
    """Random augmentation of training images; `copy_paste` runs after the geometric changes, before `color`.

    Attributes:
        copy_paste: probability of pasting things from another image, 0-1.
        short: lengths of the short side in pixels; the image is resized to a random one (800 for R50).
        long: maximum length of the long side in pixels, before `jitter`.
        jitter: range of a random factor of the size (large-scale jitter).
        flip: probability of a horizontal flip, 0-1.
        flip_vertical, rotate: probability of a vertical flip and of a rotation by 90°, 0-1, for images without
            a natural orientation, such as cells.
        crop: (height, width) in pixels of a random crop; smaller images are padded in the batch.
        color: strength, 0-1, of random changes of brightness, contrast, saturation and (a fifth of it) hue.
        min_area: number of pixels below which a thing becomes void after all changes.
    """

    copy_paste: float = bounded(0.0, least=0, most=1)
    short: list[int] = bounded([800], least=SMALLEST, most=65536, filled=True)
    long: int = bounded(1333, least=SMALLEST, most=65536)
    jitter: tuple[float, float] = bounded((1.0, 1.0), above=0, most=100)
    flip: float = bounded(0.5, least=0, most=1)
    flip_vertical: float = bounded(0.0, least=0, most=1)
    rotate: float = bounded(0.0, least=0, most=1)
    crop: tuple[int, int] | None = bounded(None, least=SMALLEST, most=65536)
    color: float = bounded(0.0, least=0, most=1)
    min_area: int = bounded(4, least=0)


@dataclass
class DatasetConfig:
    """One split of a data set.

    Attributes:
        kind: "coco" (COCO panoptic files) or "cityscapes" (original folders).
        images, json, segments: for "coco": folder of images, panoptic JSON, folder of id-PNGs.
        instances: for "coco", optional: instances JSON; boxes and masks are trained on its masks, which may
            overlap, and AP is measured on them.
        remap: for "coco", optional: JSON of category changes, or "supercategory" for COCO's coarse labels.
        exif: for "coco": whether images with EXIF rotation were annotated as "shown" by viewers or as "stored" in
            the file; null decides by size and rejects images that fit both ways (180°, mirrored, square).
        page, channel: for "coco": page of image stacks and channel to read as grey, from 1; null rejects images
            with several.
        range: for "coco": values of images of more than 8 bits that become black and white; null takes the
            significant bits that a file states, or else percentiles of each image.
        root, split: for "cityscapes": folder with leftImg8bit/ and gtFine/, and "train", "val" or "test".
    """

    kind: Literal["coco", "cityscapes"] = "coco"
    images: str | None = None
    json: str | None = None
    segments: str | None = None
    instances: str | None = None
    remap: str | None = None
    exif: Literal["shown", "stored"] | None = None
    page: int | None = bounded(None, least=1)
    channel: int | None = bounded(None, least=1)
    range: tuple[float, float] | None = bounded(None, least=-(2**31), most=2**32)
    root: str | None = None
    split: str | None = None


def check_dataset_fields(config: DatasetConfig, prefix: str) -> None:
    """Raise RefineError if a field that the kind of the data set needs is missing."""
    needed = ("images", "json", "segments") if config.kind == "coco" else ("root", "split")
    for name in needed:
        if not getattr(config, name):
            raise RefineError(f"{prefix}{name} is not given; kind {config.kind!r} needs {', '.join(needed)}")
    if config.range is not None and not config.range[0] < config.range[1]:
        raise RefineError(f"{prefix}range is {list(config.range)}; expected two increasing numbers")
