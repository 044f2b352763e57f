"""How training pictures are varied. Nothing here imports torch, so that the command line starts at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from refine.bounds import bounded
from refine.errors import RefineError


@dataclass
class AugmentConfig:
    """Random changes of training pictures, in the order in which they are made.

    Attributes:
        copy_paste: probability that things of another picture are pasted in.
        short: short sides in pixels, one is drawn and the picture resized to it (800 for R50).
        long: the long side does not exceed it, before `jitter`.
        jitter: the drawn size is multiplied by a factor from this range (large-scale jitter).
        flip: probability of a horizontal flip.
        flip_vertical, rotate: probability of a vertical flip, and of a turn by 90° (pictures without an
            up, such as cells).
        crop: (height, width) of a random crop; smaller pictures are left, the batch pads them.
        color: strength 0-1 of random brightness, contrast, saturation and (a fifth of it) hue.
        min_area: things of fewer pixels after all this become void.
    """

    copy_paste: float = bounded(0.0, least=0, most=1)
    short: list[int] = bounded([800], least=1, most=65536, filled=True)
    long: int = bounded(1333, least=1, most=65536)
    jitter: tuple[float, float] = bounded((1.0, 1.0), above=0, most=100)
    flip: float = bounded(0.5, least=0, most=1)
    flip_vertical: float = bounded(0.0, least=0, most=1)
    rotate: float = bounded(0.0, least=0, most=1)
    crop: tuple[int, int] | None = bounded(None, least=1, most=65536)
    color: float = bounded(0.0, least=0, most=1)
    min_area: int = bounded(4, least=0)


@dataclass
class DatasetConfig:
    """One split of a data set.

    Attributes:
        kind: "coco" (COCO panoptic files) or "cityscapes" (the raw folders).
        images, json, segments: of "coco": folder of images, panoptic JSON, folder of id-PNGs.
        instances: of "coco", optional: instances JSON; boxes and masks learn from its masks, which may overlap, and
            AP is measured on them.
        remap: of "coco", optional: JSON of category changes, or "supercategory" for COCO's coarse labels.
        exif: of "coco": whether images with an EXIF turn were annotated as "shown" by viewers or as "stored" in
            the file; if null, sizes tell, and an image that fits both ways (180°, mirrors, squares) is an error.
        root, split: of "cityscapes": folder with leftImg8bit/ and gtFine/, and "train", "val" or "test".
    """

    kind: Literal["coco", "cityscapes"] = "coco"
    images: str | None = None
    json: str | None = None
    segments: str | None = None
    instances: str | None = None
    remap: str | None = None
    exif: Literal["shown", "stored"] | None = None
    root: str | None = None
    split: str | None = None


def check_dataset_fields(config: DatasetConfig, where: str) -> None:
    """Refuse a data set without the fields that its kind needs; raises RefineError."""
    needed = ("images", "json", "segments") if config.kind == "coco" else ("root", "split")
    for name in needed:
        if not getattr(config, name):
            raise RefineError(f"{where}.{name} is not given; kind {config.kind!r} needs {', '.join(needed)}")
