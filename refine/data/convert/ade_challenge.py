"""ADE20K scene parsing benchmark (ADEChallengeData2016): 150 classes and the instances of 100 of them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from refine.data.ade20k import ADE20K
from refine.data.convert.source import LabelMap, ReadOptions, Sample, Source, SourceClass, choose_split
from refine.errors import RefineError
from refine.files import read_json
from refine.formats.label_image import read_colors, read_labels
from refine.formats.runs import Runs

FIRST = 256
"""Value of the instance numbered 0; smaller values are classes."""


def recognise(path: Path) -> bool:
    return (path / "objectInfo150.txt").is_file() or (path / "annotations_instance").is_dir()


def read(path: Path, options: ReadOptions) -> Source:
    """List the images of a split, "training" or "validation".

    annotations/SPLIT/NAME.png holds classes 1 to 150, 0 for none of them. In annotations_instance/SPLIT/NAME.png,
    red is the number of the class among the things, from 1, and green the number of the instance, 0 for none.
    Instances lie in front of stuff. Pixels of a thing class that belong to no instance are void.

    Raises:
        RefineError: a folder or file is missing.
    """
    for name in ("images", "annotations", "annotations_instance"):
        if not (path / name).is_dir():
            download = " (annotations_instance.tar, a download of its own)" if "instance" in name else ""
            raise RefineError(f"{path / name}: no such folder; ADEChallengeData2016 needs it{download}")
    splits = sorted(folder.name for folder in (path / "annotations_instance").iterdir() if folder.is_dir())
    split = choose_split(str(path), splits, options.split)
    entries: Any = read_json(ADE20K)
    classes = [SourceClass(entry["name"], entry["id"] + 1, bool(entry["isthing"])) for entry in entries]
    samples = []
    for instances in sorted((path / "annotations_instance" / split).glob("*.png")):
        image = path / "images" / split / f"{instances.stem}.jpg"
        semantic = path / "annotations" / split / instances.name
        for file in (image, semantic):
            if not file.is_file():
                raise RefineError(f"{file}: no such file, but {instances} is there; copy the data set again")
        reading = partial(_read, semantic, instances, classes)
        samples.append(Sample(image.name, image, instances, reading, others=(semantic,)))
    return Source(classes, samples)


def _read(semantic: Path, instances: Path, classes: list[SourceClass]) -> LabelMap:
    sem_seg, (red, green, _) = read_labels(semantic), np.moveaxis(read_colors(instances), 2, 0)
    if sem_seg.shape != green.shape:
        raise RefineError(f"{instances}: its size differs from that of {semantic}; copy both again")
    things = [each.name for each in classes if each.isthing]
    labels: dict[int, tuple[str | None, bool]] = {}
    for value in Runs.from_map(256 * green.astype(np.int64) + red).areas()[0].tolist():
        number, kind = divmod(value, 256)
        if number == 0:
            continue
        if not 1 <= kind <= len(things):
            raise RefineError(f"{instances}: red is {kind} for instance {number}; expected 1 to {len(things)}")
        if FIRST + number in labels:
            raise RefineError(f"{instances}: instance {number} has two classes; copy it again")
        labels[FIRST + number] = (things[kind - 1], False)
    values = np.where(green > 0, FIRST + green.astype(np.int64), sem_seg)
    for value in Runs.from_map(values).areas()[0].tolist():
        if 0 < value < FIRST:
            if value > len(classes):
                raise RefineError(f"{semantic}: class is {value}; expected 0 to {len(classes)}")
            each = classes[value - 1]
            labels[value] = (None if each.isthing else each.name, False)
    return LabelMap(values, labels)
