"""Pascal VOC: SegmentationObject and SegmentationClass, also with the labelmap.txt of CVAT."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from refine.data.convert.label_images import BACKGROUND
from refine.data.convert.source import (
    LabelMap,
    ReadOptions,
    Sample,
    Source,
    SourceClass,
    choose_split,
    existing,
    inside,
)
from refine.errors import RefineError
from refine.files import read_bytes
from refine.formats.label_image import read_colors, read_labels
from refine.formats.runs import Runs

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""Classes of PASCAL VOC; palette index n is class n, 0 is background and 255 is void."""
VOID = 255
_SUFFIXES = (".jpg", ".jpeg", ".png")
_WHITE = (224, 224, 192)
"""Colour of the outlines between objects, the palette's 255."""


def recognise(path: Path) -> bool:
    return (path / "SegmentationObject").is_dir()


def read(path: Path, options: ReadOptions) -> Source:
    """List the images of ImageSets/Segmentation/SPLIT.txt, or all of SegmentationObject if there are no lists.

    Without labelmap.txt, PNGs have a palette whose indices are VOC's classes and the numbers of objects. With it,
    colours are the classes it lists, and every colour of SegmentationObject is one object.

    Raises:
        RefineError: a folder, list or image is missing, or an annotation has two images.
    """
    objects = path / "SegmentationObject"
    if not objects.is_dir():
        raise RefineError(f"{objects}: no such folder; give the folder above it, such as VOCdevkit/VOC2012")
    lists = {p.stem: p for p in sorted((path / "ImageSets" / "Segmentation").glob("*.txt"))}
    if lists:
        chosen = lists[choose_split(str(path), list(lists), options.split)]
        lines = read_bytes(chosen).decode("utf-8", "replace").splitlines()
        names = [line.strip() for line in lines if line.strip()]
    else:
        chosen, names = objects, sorted(p.stem for p in objects.glob("*.png"))
    colors = _label_map(path / "labelmap.txt")
    images = options.images or path / "JPEGImages"
    samples = []
    for name in names:
        file = inside(objects, f"{name}.png", str(chosen))
        found = [s for s in _SUFFIXES if (images / (name + s)).is_file()] or [_SUFFIXES[0]]
        if len(found) > 1:
            raise RefineError(f"{images}: {name}{found[0]} and {name}{found[1]} both belong to {file}; keep one")
        suffix = found[0]
        existing([images], name + suffix, str(chosen), "give the folder of the images with --images")
        classes = path / "SegmentationClass" / f"{name}.png"
        reading = partial(_read, file, classes, colors)
        others = (classes, path / "labelmap.txt")
        samples.append(Sample(name + suffix, images / (name + suffix), file, reading, others=others))
    listed = (
        CLASSES if colors is None else list(dict.fromkeys(name for name in colors.values() if name != BACKGROUND))
    )
    return Source([SourceClass(name) for name in listed], samples, BACKGROUND)


def _label_map(path: Path) -> dict[int, str] | None:
    """Return colour (R + 256 G + 65536 B) -> class of a labelmap.txt; None if there is none."""
    if not path.is_file():
        return None
    colors = {}
    for n, line in enumerate(read_bytes(path).decode("utf-8", "replace").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            name, color = line.split(":")[:2]
            r, g, b = (int(number) for number in color.split(","))
        except ValueError as error:
            raise RefineError(f"{path}:{n}: expected name:R,G,B ({error}); correct it") from error
        colors[r + 256 * g + 65536 * b] = name
    return colors


def _read(file: Path, class_file: Path, colors: dict[int, str] | None) -> LabelMap:
    if colors is None:
        objects, classes = read_labels(file), read_labels(class_file)
        names: dict[int, str | None] = dict(enumerate(CLASSES, 1)) | {VOID: None}
    else:
        objects, classes = _ids(file), _ids(class_file)
        r, g, b = _WHITE
        names = {r + 256 * g + 65536 * b: None}
        names |= {color: None if name == BACKGROUND else name for color, name in colors.items()}
    if objects.shape != classes.shape:
        raise RefineError(f"{file}: its size differs from that of {class_file}; copy both again")
    both = objects.astype(np.int64) << 24 | classes
    labels: dict[int, tuple[str | None, bool]] = {}
    seen: dict[int, int] = {}
    for value in Runs.from_map(both).areas()[0].tolist():
        number, kind = value >> 24, value & 0xFFFFFF
        if number == 0 and kind == 0:
            continue
        if kind not in names:
            raise RefineError(f"{class_file}: value {kind} is no class; list it in labelmap.txt")
        if names[kind] is not None and number and seen.setdefault(number, kind) != kind:
            raise RefineError(
                f"{file}: object {number} is {names[seen[number]]} and {names[kind]} in {class_file}; correct it"
            )
        labels[value] = (names[kind], number == 0)
    return LabelMap(both, labels)


def _ids(file: Path) -> np.ndarray:
    """Read a colour image as R + 256 G + 65536 B, [H, W] int64."""
    return read_colors(file).astype(np.int64) @ [1, 256, 65536]
