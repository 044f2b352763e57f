"""Label images, one value per object, beside their images (StarDist, Cellpose, CellProfiler, ImageJ)."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from refine.data.convert.source import LabelMap, ReadOptions, Sample, Source, SourceClass, relative_name
from refine.errors import RefineError, counted
from refine.formats.image_list import SUFFIXES as IMAGE_SUFFIXES
from refine.formats.label_image import SUFFIXES, read_labels
from refine.formats.runs import Runs

FOLDERS = ("masks", "labels", "label", "mask")
"""Usual names of the folder of label images beside `images`."""
_MARK = re.compile(r"[_-](cp_masks|masks?|labels?|instances?)$", re.IGNORECASE)
_IMAGE_MARK = re.compile(r"[_-](img|image|im)$", re.IGNORECASE)
BACKGROUND = "background"


def recognise(path: Path) -> bool:
    return path.is_dir() and (_label_folder(path) is not None or any(_MARK.search(p.stem) for p in _labels(path)))


def read(path: Path, options: ReadOptions) -> Source:
    """Pair images with label images.

    The folder holds images/ and masks/ (or labels/) with files of the same name, or both side by side, where label
    images are named NAME_masks, NAME_cp_masks, NAME_labels and so on. With `options.labels` it holds the images.
    Every value above 0 is one object; 0 is background.

    Raises:
        RefineError: no image has a label image, or one has several, or shares one.
    """
    if not path.is_dir():
        raise RefineError(f"{path}: is not a folder; give the folder of images and label images")
    images = path / "images" if (path / "images").is_dir() else path
    labels = options.labels or _label_folder(path) or path
    found: dict[str, Path] = {}
    for file in _labels(labels):
        if labels == images and not _MARK.search(file.stem):
            continue
        key = _key(file, labels)
        if key in found:
            raise RefineError(f"{file}: belongs to the same image as {found[key]}; keep one")
        found[key] = file
    samples, without = [], 0
    paired: dict[str, Path] = {}
    for image in _images(images):
        if _MARK.search(image.stem) if labels == images else labels in image.parents:
            continue
        key = _key(image, images)
        if key in paired:
            raise RefineError(f"{paired[key]} and {image} both belong to one label image; keep one")
        if key in found:
            file, paired[key] = found.pop(key), image
            samples.append(Sample(relative_name(image, images), image, file, partial(_read, file, options)))
        else:
            without += 1
    if not samples and any(labels.rglob("*_seg.npy")):
        raise RefineError(
            f"{labels}: _seg.npy files hold pickled Python objects, which could run code; save the masks as PNG or "
            f"TIFF (in Cellpose: File > Save masks, or --save_png)"
        )
    if not samples:
        raise RefineError(
            f"{images}: no image has a label image of the same name in {labels}; name them alike, or give the "
            f"folder of label images with --labels"
        )
    notes = []
    if without:
        notes.append(f"{images}: left out: {counted(without, 'image')} without a label image")
    if found:
        notes.append(
            f"{labels}: left out: {counted(len(found), 'label image')} without an image, such as "
            f"{min(found.values())}"
        )
    return Source([SourceClass(options.name)], samples, BACKGROUND, notes)


def _read(file: Path, options: ReadOptions) -> LabelMap:
    values = read_labels(file, options.page)
    if values.min() < 0:
        raise RefineError(f"{file}: has the negative value {values.min()}; number objects from 1, background is 0")
    found = Runs.from_map(values).areas()[0].tolist()
    return LabelMap(values, {value: (options.name, False) for value in found if value})


def _label_folder(path: Path) -> Path | None:
    if not (path / "images").is_dir():
        return None
    return next((path / name for name in FOLDERS if (path / name).is_dir() and _labels(path / name)), None)


def _labels(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))


def _key(file: Path, root: Path) -> str:
    """Return the path below the root that an image and its label image share."""
    stem = _IMAGE_MARK.sub("", _MARK.sub("", file.stem))
    return relative_name(file.with_name(stem), root)
