"""YOLO segmentation: data.yaml, images/ and labels/*.txt with one polygon in shares of the image per line."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import yaml

from refine.data.convert.shapes import polygon
from refine.data.convert.source import (
    ReadOptions,
    Region,
    Regions,
    Sample,
    Source,
    SourceClass,
    choose_split,
    inside,
)
from refine.errors import RefineError, counted, shown
from refine.files import read_bytes
from refine.formats.image_list import SUFFIXES
from refine.formats.image_size import image_size

SPLITS = ("train", "val", "test")
TOLERANCE = 0.01
"""Share of the image by which a coordinate may leave it, as Ultralytics allows; it is clipped."""


def recognise(path: Path) -> bool:
    return (path / "data.yaml").is_file() or (path.suffix.lower() in (".yaml", ".yml") and path.is_file())


def read(path: Path, options: ReadOptions) -> Source:
    """List the images of a split of data.yaml.

    Paths are taken below `options.images` or the folder of data.yaml: `path` where it exists there, and leading
    ".." are dropped, since exports contain them. An image without a label file has no object.

    Raises:
        RefineError: a field is missing or invalid, or there is no image.
    """
    file = path / "data.yaml" if path.is_dir() else path
    content = _load(file)
    names = _names(file, content.get("names"))
    split = choose_split(str(file), [each for each in SPLITS if content.get(each)], options.split)
    root, notes = options.images or file.parent, []
    base = content.get("path")
    if isinstance(base, str) and not PurePath(base).is_absolute() and (root / _below(base)).is_dir():
        root = root / _below(base)
    count = content.get("nc", len(names))
    if count != len(names):
        notes.append(f"{file}: nc is {shown(count)}, but there are {counted(len(names), 'name')}")
    samples, empty = [], 0
    for image in _images(file, root, content[split], split):
        label = _label_file(image)
        empty += not label.is_file()
        name = PurePath(*(part for part in image.relative_to(root).parts if part != "images")).as_posix()
        samples.append(Sample(name, image, label, partial(_read, image, label, names)))
    if not samples:
        raise RefineError(f"{file}: {split}: contains no image; correct the path")
    if empty:
        notes.append(f"{file}: no label file, so no object: {counted(empty, 'image')} of {split}")
    classes = [SourceClass(name, number) for number, name in names.items()]
    return Source(classes, samples, notes=notes)


def _load(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(read_bytes(file))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RefineError(f"{file}: is not valid YAML ({error}); correct it") from error
    if not isinstance(content, dict):
        raise RefineError(f"{file}: expected a mapping with names and train; give the data.yaml of a YOLO data set")
    return content


def _names(file: Path, value: Any) -> dict[int, str]:
    """Return class number -> name."""
    names = dict(enumerate(value)) if isinstance(value, list) else value
    if not isinstance(names, dict) or not names or not all(type(n) is int and n >= 0 for n in names):
        raise RefineError(f"{file}: names is {shown(value)}; expected a list of names, or numbers with names")
    return {n: str(name) for n, name in sorted(names.items())}


def _below(name: str) -> str:
    """Return a relative path without leading ".."."""
    parts = PurePath(name.replace("\\", "/")).parts
    while parts and parts[0] in ("..", "."):
        parts = parts[1:]
    return "/".join(parts) or "."


def _images(file: Path, root: Path, value: Any, split: str) -> Iterator[Path]:
    """Yield the images of the folders and lists of a split."""
    for entry in value if isinstance(value, list) else [value]:
        where = f"{file}: {split}"
        if not isinstance(entry, str):
            raise RefineError(f"{where} is {shown(entry)}; expected a folder or a list of images")
        source = inside(root, _below(entry), where)
        if source.is_dir():
            yield from sorted(p for p in source.rglob("*") if p.suffix.lower() in SUFFIXES)
        elif source.suffix == ".txt" and source.is_file():
            lines = read_bytes(source).decode("utf-8", "replace").splitlines()
            for n, line in enumerate(lines, 1):
                if line.strip():
                    yield inside(root, _below(line.strip()), f"{source}:{n}")
        else:
            raise RefineError(f"{where}: {source} is neither a folder nor a list of images; correct the path")


def _label_file(image: Path) -> Path:
    """Return the label file of an image: the last folder `images` of its path is `labels` instead."""
    parts = list(image.parts)
    for n in range(len(parts) - 2, -1, -1):
        if parts[n] == "images":
            parts[n] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _read(image: Path, label: Path, names: dict[int, str]) -> Regions:
    height, width = image_size(image, str(image)).shown
    lines = read_bytes(label).decode("utf-8", "replace").splitlines() if label.is_file() else []
    regions = []
    for n, line in enumerate(lines, 1):
        where = f"{label}:{n}"
        try:
            number, *shares = (float(word) for word in line.split())
        except ValueError:
            if not line.strip():
                continue
            raise RefineError(f"{where}: expected a class and coordinates, got {shown(line)}; correct it") from None
        if number not in names:
            raise RefineError(f"{where}: class {number:g} is not in names of data.yaml; add it there")
        if len(shares) == 4:
            raise RefineError(f"{where}: is a box, not a polygon; export the data set for segmentation")
        if len(shares) % 2 or not all(-TOLERANCE <= share <= 1 + TOLERANCE for share in shares):
            raise RefineError(f"{where}: expected pairs of shares from 0 to 1, got {shown(line)}; correct it")
        points = [[x * width, y * height] for x, y in zip(shares[::2], shares[1::2], strict=True)]
        regions.append(Region(names[int(number)], polygon(points, (height, width), where), f"line {n}"))
    return Regions((height, width), regions)
