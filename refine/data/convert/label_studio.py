"""Label Studio: JSON export with brush masks, polygons, rectangles and ellipses."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from refine.data.convert.shapes import Code, Size, ellipse, encode, polygon, rectangle
from refine.data.convert.source import ReadOptions, Region, Regions, Sample, Source, SourceClass, existing
from refine.errors import RefineError, shown
from refine.files import MAX_PIXELS, name_problem, read_json
from refine.formats.image_size import image_size

KINDS = ("brushlabels", "polygonlabels", "rectanglelabels", "ellipselabels")
_UPLOAD = re.compile("^[0-9a-f]{8}-")
"""Prefix that Label Studio gives to uploaded files."""


def recognise(path: Path) -> bool:
    return path.suffix.lower() == ".json" and _is_label_studio(read_json(path))


def read(path: Path, options: ReadOptions) -> Source:
    """Read an export, in which tasks name their images by address.

    Images are looked up by file name, with and without the prefix of uploads, in `options.images` or beside the
    file. Of several annotations of a task the first that was not cancelled counts; predictions do not.

    Raises:
        RefineError: the file is not of this format, an entry is invalid, or an image is not found.
    """
    content = read_json(path)
    if not _is_label_studio(content):
        raise RefineError(f"{path}: expected a list of tasks with annotations; export as JSON, not JSON-MIN")
    folders = [options.images] if options.images else [path.parent, path.parent / "images"]
    skipped: Counter[str] = Counter()
    samples, labels, several, without = [], set(), 0, 0
    for n, task in enumerate(content):
        where = f"{path}: [{n}]"
        found = [a for a in task["annotations"] if isinstance(a, dict) and not a.get("was_cancelled")]
        if not found:
            without += 1
            continue
        several += len(found) > 1
        result = found[0].get("result")
        if not isinstance(result, list) or not all(isinstance(each, dict) for each in result):
            raise RefineError(f"{where}: annotations: result is {shown(result)}; expected a list of mappings")
        labels |= {label for _, label, _ in _shapes(result, where, Counter())}
        image = _image(task, folders, where)
        samples.append(Sample(image.name, image, path, partial(_read, result, image, where, skipped)))
    if not samples:
        raise RefineError(f"{path}: no task is annotated; export again")
    notes = [f"{path}: {without} tasks are not annotated and are left out"] if without else []
    if several:
        notes.append(f"{path}: {several} tasks have several annotations, of which the first is used")
    return Source([SourceClass(label) for label in sorted(labels)], samples, notes=notes, skipped=skipped)


def _is_label_studio(content: Any) -> bool:
    return (
        isinstance(content, list)
        and bool(content)
        and all(
            isinstance(task, dict)
            and isinstance(task.get("annotations"), list)
            and isinstance(task.get("data"), dict)
            for task in content
        )
    )


def _image(task: dict[str, Any], folders: list[Path], where: str) -> Path:
    values = [task["data"].get("image"), *task["data"].values()]
    address = next((value for value in values if isinstance(value, str)), None)
    if address is None:
        raise RefineError(f"{where}: data has no address of an image; export again")
    parts = urlsplit(address)
    local = parse_qs(parts.query).get("d", [unquote(parts.path)])[0]  # /data/local-files/?d=folder/image.jpg
    name = PurePosixPath(local.replace("\\", "/")).name
    if problem := name_problem(name):
        raise RefineError(f"{where}: data: {problem}")
    plain = _UPLOAD.sub("", name)
    if any((folder / plain).is_file() for folder in folders) and not any((f / name).is_file() for f in folders):
        name = plain
    return existing(folders, name, where, "give the folder of the images with --images") / name


def _shapes(
    result: list[dict[str, Any]], where: str, skipped: Counter[str]
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield place, label and entry of each result that has pixels."""
    for n, entry in enumerate(result):
        kind, value = entry.get("type"), entry.get("value")
        if kind not in KINDS:
            skipped[f"{kind} (no labelled area)"] += 1
            continue
        labels = value.get(kind) if isinstance(value, dict) else None
        if not isinstance(labels, list) or len(labels) != 1 or not isinstance(labels[0], str):
            raise RefineError(f"{where}: result[{n}]: {kind} is {shown(labels)}; expected one label")
        yield f"{where}: result[{n}]", labels[0], entry


def _read(result: list[dict[str, Any]], image: Path, where: str, skipped: Counter[str]) -> Regions:
    size = image_size(image, str(image))
    regions: list[Region] = []
    used = size.shown
    for place, label, entry in _shapes(result, where, skipped):
        stated = entry.get("original_height"), entry.get("original_width")
        if stated not in size:
            raise RefineError(
                f"{place}: original_height and original_width are {shown(list(stated))}, but {image} has "
                f"{size.shown[1]} × {size.shown[0]} pixels; give the image that was annotated"
            )
        if entry.get("image_rotation"):
            raise RefineError(f"{place}: image_rotation is {shown(entry['image_rotation'])}; annotate without it")
        used = size[size.index(stated)]
        regions.append(Region(label, _code(entry, used, place), place.partition(": ")[2]))
    return Regions(used, regions)


def _code(entry: dict[str, Any], size: Size, where: str) -> Code:
    value, kind = entry["value"], entry["type"]
    if kind == "brushlabels":
        return encode(_brush(value.get("rle"), size, where))
    scale = np.array([size[1], size[0]]) / 100  # coordinates are percentages
    try:
        if kind == "polygonlabels":
            return polygon(np.asarray(value["points"], float) * scale, size, where)
        fields = ("x", "y", "width", "height") if kind == "rectanglelabels" else ("x", "y", "radiusX", "radiusY")
        x, y, a, b = (float(value[field]) for field in fields)
        angle = float(value.get("rotation", 0))
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise RefineError(f"{where}: value is invalid ({error}); correct or drop it") from error
    x, y, a, b = x * scale[0], y * scale[1], a * scale[0], b * scale[1]
    if kind == "ellipselabels":
        return ellipse((x, y), (a, b), size, where, angle)
    return rectangle((x, y, x + a, y + b), size, where, angle, pivot=(x, y))


def _brush(data: Any, size: Size, where: str) -> np.ndarray:
    """Decode a mask, [H, W] bool: the opacity of RGBA pixels in the run lengths of @thi.ng/rle-pack.

    A header gives the number of values (32 bits), the bits per value - 1 (5) and four widths - 1 (4 each). Then
    come runs: one bit that says whether one value is repeated, two bits that choose a width, the length - 1 in that
    width, and one value or as many as the length.

    Raises:
        RefineError: the data are no bytes, truncated or of another size.
    """
    try:
        bits = np.unpackbits(np.array(data, np.uint8)) if max(data) < 256 > min(data) >= 0 else None
        if bits is None:
            raise ValueError("expected bytes")
        text = (bits + ord("0")).tobytes().decode()
        count, word = int(text[:32], 2), int(text[32:37], 2) + 1
        widths = [int(text[37 + 4 * k : 41 + 4 * k], 2) + 1 for k in range(4)]
        if word != 8 or count != 4 * size[0] * size[1] or count > 4 * MAX_PIXELS:
            raise ValueError(f"expected {4 * size[0] * size[1]} values of 8 bits, got {count} of {word}")
        values, position, filled = np.empty(count, np.uint8), 53, 0
        while filled < count:
            repeated, width = text[position] == "1", widths[int(text[position + 1 : position + 3], 2)]
            position += 3
            length = min(int(text[position : position + width], 2) + 1, count - filled)
            position += width
            end = position + word * (1 if repeated else length)
            if end > len(text):
                raise ValueError("it is truncated")
            values[filled : filled + length] = np.packbits(bits[position:end])
            filled, position = filled + length, end
    except (ValueError, TypeError, IndexError) as error:
        raise RefineError(f"{where}: rle is invalid ({error}); export it again") from error
    return values.reshape(*size, 4)[..., 3] > 0
