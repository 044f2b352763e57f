"""LabelMe: one JSON per image with polygons, rectangles, circles and masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from refine.data.convert.shapes import (
    Code,
    Size,
    bitmap,
    ellipse,
    embedded_png,
    from_base64,
    join_parts,
    polygon,
    rectangle,
)
from refine.data.convert.source import (
    ReadOptions,
    Region,
    Regions,
    Sample,
    Source,
    SourceClass,
    inside,
    relative_name,
)
from refine.errors import RefineError, shown
from refine.files import read_json
from refine.formats.image_size import image_size
from refine.formats.panoptic_json import is_id, valid_size

IGNORED = "__ignore__"
"""Label that LabelMe reserves for regions to ignore; they become void."""
BACKGROUND = "_background_"
"""Label that LabelMe reserves for the background, which has no objects."""
WITHOUT_AREA = ("line", "linestrip", "point", "points")


def recognise(path: Path) -> bool:
    first = next(iter(sorted(path.glob("*.json"))), None) if path.is_dir() else None
    return first is not None and _is_labelme(read_json(first))


def read(path: Path, options: ReadOptions) -> Source:
    """List the JSON files of a folder and its subfolders; others than LabelMe's are skipped.

    Shapes of one label with the same `group_id` are parts of one object. Images are found by `imagePath`, or by
    the name of the JSON file, or are taken from `imageData`.

    Raises:
        RefineError: there is no file of LabelMe, or a field is invalid.
    """
    skipped: Counter[str] = Counter()
    samples, names = [], set()
    for file in sorted(path.rglob("*.json")) if path.is_dir() else []:
        content = read_json(file)
        if not _is_labelme(content):
            continue
        names |= {label for _, label, _ in _shapes(content, file)}
        image = _image(content, file, path)
        name = file.with_suffix(PurePath(content["imagePath"]).suffix) if image is None else image
        samples.append(
            Sample(
                relative_name(name, path),
                image or partial(_embedded, file),
                file,
                partial(_read, file, image, skipped),
            )
        )
    if not samples:
        raise RefineError(f"{path}: contains no JSON of LabelMe; give the folder of its files")
    classes = [SourceClass(name, isthing=name != BACKGROUND) for name in sorted(names - {IGNORED})]
    return Source(classes, samples, skipped=skipped)


def _is_labelme(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content


def _shapes(content: dict[str, Any], file: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield place, label and content of each shape."""
    for n, shape in enumerate(content["shapes"]):
        where = f"{file}: shapes[{n}]"
        if not isinstance(shape, dict) or not isinstance(shape.get("label"), str):
            raise RefineError(f"{where}: has no label; correct or drop it")
        yield where, shape["label"], shape


def _image(content: dict[str, Any], file: Path, root: Path) -> Path | None:
    """Return the image of a file, or None if the file contains it."""
    name = content["imagePath"]
    named = inside(root, name, f"{file}: imagePath", relative_name(file.parent, root))
    beside = file.with_suffix(named.suffix)
    for image in (named, file.parent / named.name, beside):
        if image.is_file():
            return image
    if content.get("imageData"):
        return None
    raise RefineError(f"{file}: imagePath: {shown(name)} does not exist and imageData is empty; add the image")


def _embedded(file: Path) -> bytes:
    return from_base64(read_json(file)["imageData"], f"{file}: imageData")


def _read(file: Path, image: Path | None, skipped: Counter[str]) -> Regions:
    content = read_json(file)
    stated = [content.get("imageHeight"), content.get("imageWidth")]
    size = valid_size(*stated)
    if stated == [None, None]:  # files of early versions
        size = image_size(_embedded(file) if image is None else image, str(image)).shown
    if size is None:
        raise RefineError(f"{file}: imageHeight and imageWidth are {shown(stated)}; expected pixels")
    parts = []
    for where, label, shape in _shapes(content, file):
        kind, place = shape.get("shape_type") or "polygon", where.removeprefix(f"{file}: ")
        if kind in WITHOUT_AREA:
            skipped[f"{kind} (no area)"] += 1
            continue
        code, group = _code(shape, kind, size, where), shape.get("group_id")
        if group is not None and not is_id(group):
            raise RefineError(f"{where}: group_id is {shown(group)}; expected an integer or null")
        parts.append((group, Region(None if label == IGNORED else label, code, place)))
    return Regions(size, join_parts(parts))


def _code(shape: dict[str, Any], kind: str, size: Size, where: str) -> Code:
    points = shape.get("points")
    if kind == "polygon":
        return polygon(points, size, where)
    if kind not in ("rectangle", "circle", "mask"):
        raise RefineError(f"{where}: shape_type {shown(kind)} is unknown; draw it as a polygon")
    try:
        (x1, y1), (x2, y2) = np.asarray(points, float).tolist()
    except (ValueError, TypeError, OverflowError) as error:
        raise RefineError(f"{where}: expected two points, got {shown(points)}; correct or drop it") from error
    if kind == "rectangle":
        return rectangle((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)), size, where)
    if kind == "circle":
        radius = float(np.hypot(x2 - x1, y2 - y1))
        return ellipse((x1, y1), (radius, radius), size, where)
    values = embedded_png(from_base64(shape.get("mask"), f"{where}: mask"), where)
    return bitmap(values, round(x1), round(y1), size, where)
