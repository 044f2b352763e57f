"""Datumaro JSON: annotations/SUBSET.json with images/SUBSET/."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from refine.data.convert.shapes import Code, Size, ellipse, join_parts, polygon, rectangle
from refine.data.convert.source import (
    ReadOptions,
    Region,
    Regions,
    Sample,
    Source,
    SourceClass,
    choose_split,
    existing,
)
from refine.errors import RefineError, shown
from refine.files import name_problem, read_json
from refine.formats.image_list import SUFFIXES
from refine.formats.image_size import image_size
from refine.formats.panoptic_json import valid_size
from refine.formats.rle import compressed

WITHOUT_AREA = ("label", "points", "polyline", "caption", "cuboid_3d", "skeleton", "feature_vector")


def recognise(path: Path) -> bool:
    files = [path] if path.suffix.lower() == ".json" else sorted((path / "annotations").glob("*.json"))
    return bool(files) and _is_datumaro(read_json(files[0]))


def read(path: Path, options: ReadOptions) -> Source:
    """Read a subset of a data set, or its JSON.

    Annotations of one label with the same group are parts of one object. A greater `z_order` lies in front.

    Raises:
        RefineError: the file is not of this format, an entry is invalid, or an image is not found.
    """
    if path.is_dir():
        found = {p.stem: p for p in sorted((path / "annotations").glob("*.json"))}
        path = found[choose_split(str(path), list(found), options.split)]
    content = read_json(path)
    if not _is_datumaro(content):
        raise RefineError(f"{path}: expected categories.label.labels and items; give a JSON of Datumaro")
    names = []
    for n, each in enumerate(content["categories"]["label"]["labels"]):
        name = each.get("name") if isinstance(each, dict) else None
        if not isinstance(name, str):
            raise RefineError(f"{path}: categories.label.labels[{n}]: name is {shown(name)}; expected a string")
        names.append(name)
    skipped: Counter[str] = Counter()
    above = path.parent.parent
    folders = [options.images] if options.images else [above / "images" / path.stem, above / "images", path.parent]
    samples = []
    for n, item in enumerate(content["items"]):
        where = f"{path}: items[{n}]"
        if not isinstance(item, dict) or not isinstance(item.get("annotations"), list):
            raise RefineError(f"{where}: has no list annotations; export it again")
        name = _image_name(item, folders, where)
        image = existing(folders, name, where, "give the folder of the images with --images") / name
        samples.append(Sample(name, image, path, partial(_read, item, image, names, where, skipped)))
    return Source([SourceClass(name, n + 1) for n, name in enumerate(names)], samples, skipped=skipped)


def _is_datumaro(content: Any) -> bool:
    match content:
        case {"categories": {"label": {"labels": list()}}, "items": list()}:
            return True
    return False


def _image_name(item: dict[str, Any], folders: list[Path], where: str) -> str:
    image = item.get("image")
    name = image.get("path") if isinstance(image, dict) else None
    if not name:  # exported without images
        number = item.get("id")
        if problem := name_problem(number):
            raise RefineError(f"{where}: id: {problem}")
        names = (f"{number}{suffix}" for suffix in sorted(SUFFIXES))
        name = next((each for each in names if any((folder / each).is_file() for folder in folders)), number)
    name = name.replace("\\", "/") if isinstance(name, str) else name
    if problem := name_problem(name):
        raise RefineError(f"{where}: image.path: {problem}")
    return str(name)


def _read(item: dict[str, Any], image: Path, names: list[str], where: str, skipped: Counter[str]) -> Regions:
    media = item.get("image")
    stated = media.get("size") if isinstance(media, dict) else None
    if stated is None:
        height, width = image_size(image, str(image)).shown
    elif isinstance(stated, list) and len(stated) == 2 and valid_size(*stated) is not None:
        height, width = stated
    else:
        raise RefineError(f"{where}: image.size is {shown(stated)}; expected height and width in pixels")
    parts = []
    for n, entry in enumerate(item["annotations"]):
        place = f"{where}: annotations[{n}]"
        entry = entry if isinstance(entry, dict) else {}
        kind = entry.get("type")
        if kind in WITHOUT_AREA:
            skipped[f"{kind} (no area)"] += 1
            continue
        label, depth, group = entry.get("label_id"), entry.get("z_order", 0), entry.get("group", 0)
        if type(label) is not int or not 0 <= label < len(names):
            raise RefineError(f"{place}: label_id is {shown(label)}; expected 0 to {len(names) - 1}")
        if type(depth) is not int or type(group) is not int:
            raise RefineError(f"{place}: z_order and group are {shown([depth, group])}; expected integers")
        code = _code(entry, kind, (height, width), place)
        parts.append((group or None, Region(names[label], code, f"annotations[{n}]", depth=depth)))
    return Regions((height, width), join_parts(parts))


def _code(entry: dict[str, Any], kind: Any, size: Size, where: str) -> Code:
    if kind == "mask":
        try:
            return compressed(entry.get("rle"), size)
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise RefineError(f"{where}: rle is invalid ({error}); correct or drop it") from error
    numbers = entry.get("points") if kind in ("polygon", "ellipse") else entry.get("bbox")
    if not isinstance(numbers, list) or not all(type(number) in (int, float) for number in numbers):
        raise RefineError(f"{where}: expected a list of numbers, got {shown(numbers)}; correct or drop it")
    if kind == "polygon" and len(numbers) % 2 == 0:
        return polygon([numbers[k : k + 2] for k in range(0, len(numbers), 2)], size, where)
    if kind in ("bbox", "ellipse") and len(numbers) == 4:
        a, b, c, d = numbers
        if kind == "bbox":
            return rectangle((a, b, a + c, b + d), size, where)
        return ellipse(((a + c) / 2, (b + d) / 2), ((c - a) / 2, (d - b) / 2), size, where)
    raise RefineError(f"{where}: type is {shown(kind)} with {len(numbers)} numbers; draw it as a polygon or mask")
