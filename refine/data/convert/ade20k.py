"""ADE20K (full annotations): NAME.jpg with NAME_seg.png and NAME.json; parts of objects are ignored."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from refine.data.convert.source import (
    LabelMap,
    ReadOptions,
    Sample,
    Source,
    SourceClass,
    choose_split,
    relative_name,
)
from refine.errors import RefineError, shown
from refine.files import read_json
from refine.formats.label_image import read_colors
from refine.formats.runs import Runs

_SPLITS = ("training", "validation")


def recognise(path: Path) -> bool:
    return path.is_dir() and any(path.rglob("ADE_*_seg.png"))


def read(path: Path, options: ReadOptions) -> Source:
    """List the images of a folder or of its split `training` or `validation`.

    In NAME_seg.png the class is 256 · (R / 10) + G and B numbers the objects. Names are those of the objects in the
    JSON files, ids their `name_ndx`. All classes are things unless they are listed as stuff.

    Raises:
        RefineError: there is no image, or a JSON is invalid.
    """
    folders = {p.name: p for name in _SPLITS for p in path.rglob(name) if p.is_dir()}
    root = folders[choose_split(str(path), sorted(folders), options.split)] if folders else path
    names: dict[int, str] = {}
    samples = []
    for file in sorted(root.rglob("*_seg.png")):
        image = file.with_name(file.name.replace("_seg.png", ".jpg"))
        if not image.is_file():
            raise RefineError(f"{image}: no such file, but {file} is its annotation; copy both again")
        for number, name in _objects(image.with_suffix(".json")):
            if names.setdefault(number, name) != name:
                raise RefineError(f"{image.with_suffix('.json')}: name_ndx {number} is {name} and {names[number]}")
        samples.append(Sample(relative_name(image, root), image, file, partial(_read, file, names)))
    if not samples:
        raise RefineError(f"{root}: contains no NAME_seg.png; give the folder of ADE20K's images")
    return Source([SourceClass(name, number) for number, name in sorted(names.items())], samples)


def _objects(file: Path) -> Iterator[tuple[int, str]]:
    """Yield (class, name) of each object that is not a part."""
    match read_json(file):
        case {"annotation": {"object": list() as objects}}:
            for n, entry in enumerate(objects):
                match entry:
                    case {"name_ndx": int() as number, "name": str() as name, "parts": {"part_level": level}}:
                        if str(level) == "0":
                            yield number, name
                    case _:
                        raise RefineError(f"{file}: annotation.object[{n}]: got {shown(entry)}; copy it again")
        case _:
            raise RefineError(f"{file}: expected annotation.object; copy it again")


def _read(file: Path, names: dict[int, str]) -> LabelMap:
    red, green, blue = np.moveaxis(read_colors(file).astype(np.int64), 2, 0)
    values = (256 * (red // 10) + green) * 256 + blue
    labels: dict[int, tuple[Any, bool]] = {}
    for value in Runs.from_map(values).areas()[0].tolist():
        number = value // 256
        if number and number not in names:
            raise RefineError(f"{file}: class {number} is in no JSON; copy the folder again")
        if number:
            labels[value] = (names[number], False)
    return LabelMap(values, labels)
