"""CVAT for images 1.1: annotations.xml with polygons, masks, boxes and ellipses."""

from __future__ import annotations

import re
from collections import Counter
from functools import partial
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from refine.data.convert.shapes import Code, Size, bitmap, ellipse, join_parts, polygon, rectangle
from refine.data.convert.source import (
    ReadOptions,
    Region,
    Regions,
    Sample,
    Source,
    SourceClass,
    existing,
    inside,
)
from refine.errors import RefineError, shown
from refine.files import MAX_PIXELS, name_problem
from refine.formats.panoptic_json import valid_size
from refine.formats.xml_tree import read_xml

WITHOUT_AREA = ("polyline", "points", "cuboid", "skeleton", "tag")


def recognise(path: Path) -> bool:
    return _file(path).is_file()


def read(path: Path, options: ReadOptions) -> Source:
    """Read an export of CVAT, its annotations.xml or the folder of that.

    Shapes of one label with the same `group_id` are parts of one object. A greater `z_order` lies in front.

    Raises:
        RefineError: the file is not of this format, a field is missing or invalid, or an image is not found.
    """
    file = _file(path)
    root = read_xml(file)
    if root.tag != "annotations" or root.find("image") is None:
        what = "CVAT for video" if root.find("track") is not None else f"<{root.tag}> without <image>"
        raise RefineError(f"{file}: expected CVAT for images, got {what}; export it as CVAT for images 1.1")
    classes = [
        SourceClass(label.findtext("name") or "", color=_color(label.findtext("color") or ""))
        for label in root.iterfind("meta//labels/label")
    ]
    names = {each.name for each in classes}
    skipped: Counter[str] = Counter()
    samples = []
    for n, image in enumerate(root.iterfind("image")):
        where = f"{file}: image[{n}]"
        name = image.get("name", "").replace("\\", "/")
        if problem := name_problem(name):
            raise RefineError(f"{where}: name: {problem}")
        subset = image.get("subset") or "default"
        here = [options.images] if options.images else [file.parent / "images", file.parent]
        folders = [folder / below for folder in here for below in ("", subset) if not name_problem(subset)]
        folder = existing(folders, name, where, "give the folder of the images with --images")
        samples.append(
            Sample(name, inside(folder, name, where), file, partial(_read, image, where, names, skipped))
        )
    return Source(classes, samples, skipped=skipped)


def _file(path: Path) -> Path:
    if path.is_dir():
        return path / "annotations.xml"
    return path if path.suffix.lower() == ".xml" else path / "annotations.xml"


def _color(text: str) -> tuple[int, int, int] | tuple[()]:
    if not re.fullmatch("#[0-9a-fA-F]{6}", text):
        return ()
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


def _read(image: Element, where: str, names: set[str], skipped: Counter[str]) -> Regions:
    height, width = (_integer(image, field, where) for field in ("height", "width"))
    if valid_size(height, width) is None:
        raise RefineError(f"{where}: has {width} × {height} pixels; expected 1 to {MAX_PIXELS:,}")
    parts = []
    for n, shape in enumerate(image):
        place = f"{where}: {shape.tag}[{n}]"
        if shape.tag in WITHOUT_AREA:
            skipped[f"{shape.tag} (no area)"] += 1
            continue
        label, group = shape.get("label", ""), shape.get("group_id", "0")
        if label not in names:
            raise RefineError(f"{place}: label {shown(label)} is not in the list of labels; export it again")
        code, depth = _code(shape, (height, width), place), _integer(shape, "z_order", place, 0)
        parts.append((None if group == "0" else group, Region(label, code, place.partition(": ")[2], depth=depth)))
    return Regions((height, width), join_parts(parts))


def _code(shape: Element, size: Size, where: str) -> Code:
    if shape.tag == "polygon":
        try:
            points = [[float(number) for number in pair.split(",")] for pair in shape.get("points", "").split(";")]
        except ValueError as error:
            raise RefineError(f"{where}: points: {error}; correct them") from error
        return polygon(points, size, where)
    if shape.tag == "box":
        box = [_number(shape, field, where) for field in ("xtl", "ytl", "xbr", "ybr")]
        return rectangle(box, size, where, _number(shape, "rotation", where, 0.0))
    if shape.tag == "ellipse":
        cx, cy, rx, ry = (_number(shape, field, where) for field in ("cx", "cy", "rx", "ry"))
        return ellipse((cx, cy), (rx, ry), size, where, _number(shape, "rotation", where, 0.0))
    if shape.tag == "mask":
        left, top, width, height = (_integer(shape, field, where) for field in ("left", "top", "width", "height"))
        return bitmap(_mask(shape.get("rle", ""), (height, width), where), left, top, size, where)
    raise RefineError(f"{where}: the shape is unknown; draw it as a polygon or mask")


def _mask(text: str, size: Size, where: str) -> np.ndarray:
    """Decode run lengths, row by row, of 0 and 1 by turns."""
    try:
        counts = np.array([int(word) for word in text.split(",")])
    except ValueError as error:
        raise RefineError(f"{where}: rle: {error}; export it again") from error
    pixels = size[0] * size[1]
    if not 0 < pixels <= MAX_PIXELS or counts.min() < 0 or sum(counts.tolist()) != pixels:
        raise RefineError(
            f"{where}: rle: expected counts of {pixels} pixels, got {shown(sum(counts.tolist()))}; export it again"
        )
    return np.repeat(np.arange(len(counts)) % 2, counts).reshape(size)


def _number(element: Element, field: str, where: str, default: float | None = None) -> float:
    text = element.get(field)
    if text is None and default is not None:
        return default
    try:
        return float(text or "")
    except ValueError:
        raise RefineError(f"{where}: {field} is {shown(text)}; expected a number") from None


def _integer(element: Element, field: str, where: str, default: int | None = None) -> int:
    number = _number(element, field, where, default)
    if not -(2**31) < number < 2**31 or number != int(number):
        raise RefineError(f"{where}: {field} is {shown(element.get(field))}; expected an integer")
    return int(number)
