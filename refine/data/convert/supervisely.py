"""Supervisely: meta.json, and DATASET/img/ with DATASET/ann/*.json of bitmaps, polygons and rectangles."""

from __future__ import annotations

import zlib
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from refine.data.convert.shapes import Code, Size, bitmap, embedded_png, encode, from_base64
from refine.data.convert.source import ReadOptions, Region, Regions, Sample, Source, SourceClass, choose_split
from refine.errors import RefineError, shown
from refine.files import MAX_PIXELS, read_json
from refine.formats.panoptic_json import valid_size

WITHOUT_AREA = ("point", "line", "graph", "cuboid")
FARTHEST = 2**20
"""Limit of a coordinate, which may lie outside the image."""


def recognise(path: Path) -> bool:
    return (path / "meta.json").is_file() and any(path.glob("*/ann"))


def read(path: Path, options: ReadOptions) -> Source:
    """List the images of a data set of a project.

    Raises:
        RefineError: a file is missing or invalid.
    """
    meta = path / "meta.json"
    content = read_json(meta)
    entries = content.get("classes") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise RefineError(f"{meta}: classes is {shown(entries)}; give the folder of a Supervisely project")
    titles = []
    for n, entry in enumerate(entries):
        title = entry.get("title") if isinstance(entry, dict) else None
        if not isinstance(title, str):
            raise RefineError(f"{meta}: classes[{n}]: title is {shown(title)}; expected a string")
        titles.append(title)
    name = choose_split(str(path), sorted(p.parent.name for p in path.glob("*/ann")), options.split)
    skipped: Counter[str] = Counter()
    samples = []
    for file in sorted((path / name / "ann").glob("*.json")):
        image = path / name / "img" / file.stem
        if not image.is_file():
            raise RefineError(f"{image}: no such file, but {file} is its annotation; export both again")
        samples.append(Sample(image.name, image, file, partial(_read, file, set(titles), skipped)))
    return Source([SourceClass(title) for title in titles], samples, skipped=skipped)


def _read(file: Path, titles: set[str], skipped: Counter[str]) -> Regions:
    content = read_json(file)
    match content:
        case {"size": {"height": int() as height, "width": int() as width}, "objects": list() as objects}:
            if valid_size(height, width) is None:
                raise RefineError(f"{file}: size is {width} × {height}; expected 1 to {MAX_PIXELS:,} pixels")
        case _:
            raise RefineError(f"{file}: expected size (height, width) and objects; export it again")
    regions = []
    for n, entry in enumerate(objects):
        where = f"{file}: objects[{n}]"
        entry = entry if isinstance(entry, dict) else {}
        title, kind = entry.get("classTitle"), entry.get("geometryType")
        if not isinstance(title, str) or title not in titles:
            raise RefineError(f"{where}: classTitle {shown(title)} is not in meta.json; add it there")
        if kind in WITHOUT_AREA:
            skipped[f"{kind} (no area)"] += 1
            continue
        regions.append(Region(title, _code(entry, kind, (height, width), where), f"objects[{n}]"))
    return Regions((height, width), regions)


def _code(entry: dict[str, Any], kind: Any, size: Size, where: str) -> Code:
    match kind, entry:
        case "bitmap", {"bitmap": {"data": str() as data, "origin": [int() as left, int() as top]}}:
            return bitmap(embedded_png(_unpacked(data, where), where), left, top, size, where)
        case "polygon", {"points": {"exterior": list() as outline, "interior": list() as inner}}:
            pixels = np.zeros(size, np.uint8)
            cv2.fillPoly(pixels, [_corners(outline, where)], [1])
            cv2.fillPoly(pixels, [_corners(hole, f"{where}: interior") for hole in inner], [0])
            return encode(pixels)
        case "rectangle", {"points": {"exterior": [[_, _], [_, _]] as corners}}:
            pixels = np.zeros(size, np.uint8)
            one, other = _corners(corners, where).tolist()
            cv2.rectangle(pixels, one, other, [1], cv2.FILLED)
            return encode(pixels)
    raise RefineError(
        f"{where}: geometryType {shown(kind)} is unknown or incomplete; export it as bitmap or polygon"
    )


def _corners(points: Any, where: str) -> np.ndarray:
    """Return the pixels of the corners, [N, 2] int32 (x, y).

    Coordinates are those of pixels, not of a plane: a figure contains the pixels of its corners and edges, and a
    hole those of its own, as Supervisely's SDK draws them with OpenCV.
    """
    try:
        corners = np.asarray(points, np.float64)
        if corners.ndim != 2 or corners.shape[1] != 2 or not (np.abs(corners) < FARTHEST).all():
            raise ValueError(f"expected pairs of numbers below {FARTHEST}")
    except (ValueError, TypeError, OverflowError) as error:
        raise RefineError(f"{where}: the points are invalid ({error}); correct or drop them") from error
    return np.floor(corners).astype(np.int32)


def _unpacked(data: str, where: str) -> bytes:
    """Decompress the PNG of a bitmap, which may not be larger than all pixels of the largest image."""
    try:
        return zlib.decompressobj().decompress(from_base64(data, where), MAX_PIXELS)
    except zlib.error as error:
        raise RefineError(f"{where}: the bitmap is damaged ({error}); export it again") from error
