"""Checks of a panoptic JSON that do not read images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refine.formats.panoptic_json import Annotation, PanopticJson
from refine.formats.segments_info import AREA, CLASS, CROWD, ID

TINY = 32
"""Side in pixels below which an image is probably a mistake."""


@dataclass
class Entry:
    """Valid entries of one annotated image.

    Attributes:
        image_id: image id in the data set.
        image: path of the image, or None if it has no valid name.
        png: path of the id-PNG.
        size: (height, width) in pixels stated by the JSON, or None.
        segments: valid entries of `segments_info` by segment id.
        areas: area in pixels stated by the JSON, or `UNSTATED`, by segment id.
        dubious: ids of invalid entries, which are already reported; their pixels are not reported again.
    """

    image_id: int | str
    image: Path | None
    png: Path
    size: tuple[int, int] | None
    segments: Mapping[int, Mapping[str, Any]]
    areas: Mapping[int, int]
    dubious: set[int]


def entries(content: PanopticJson, images: Path, segments: Path) -> list[Entry]:
    """Return the annotated images of a JSON; `images` and `segments` are the folders of images and id-PNGs."""
    return [_entry(content, annotation, images, segments) for annotation in content.annotations]


def _entry(content: PanopticJson, annotation: Annotation, images: Path, segments: Path) -> Entry:
    name, size = content.images[annotation.image_id]
    valid = content.infos(annotation)
    infos = content.content["annotations"][annotation.position]["segments_info"]
    numbers = [info.get("id") for info in infos if isinstance(info, dict)]
    dubious = {number for number in numbers if type(number) is int} - valid.keys()
    image = None if name is None else images / name
    areas = dict(content.table[annotation.rows][:, [ID, AREA]].tolist())
    return Entry(annotation.image_id, image, segments / annotation.file_name, size, valid, areas, dubious)


def warnings(content: PanopticJson) -> Iterator[tuple[str, str]]:
    """Yield (kind, message) of entries that are valid but probably unintended."""
    for isthing, name in ((True, "thing"), (False, "stuff")):
        if not any(category.isthing is isthing for category in content.categories):
            yield "category", f"categories: there is no {name} class"
    annotated = {annotation.image_id for annotation in content.annotations}
    files: dict[str, int | str] = {}
    pngs: dict[str, int | str] = {}
    for image_id, (file, size) in content.images.items():
        if size is not None and min(size) < TINY:
            yield "image", f"image {image_id}: has only {size[1]} × {size[0]} pixels"
        if file is not None and files.setdefault(file, image_id) != image_id:
            yield "image", f"image {image_id}: {file} is also the file of image {files[file]}"
        if image_id not in annotated:
            yield "image", f"image {image_id} ({file}) has no annotation and is skipped"
    for annotation in content.annotations:
        where, png = f"annotation of image {annotation.image_id}", annotation.file_name
        if pngs.setdefault(png, annotation.image_id) != annotation.image_id:
            yield "annotation", f"{where}: {png} is also the PNG of image {pngs[png]}"
        stuff: dict[int, int] = {}
        for number, label, crowd in content.table[annotation.rows][:, [ID, CLASS, CROWD]].tolist():
            if content.categories[label].isthing:
                continue
            category = content.categories[label].id
            if crowd:
                yield "segment", f"{where}: segment {number}: is a crowd of the stuff class {category}"
            if label in stuff:
                text = f"segment {number}: stuff class {category} already has segment {stuff[label]}"
                yield "segment", f"{where}: {text}"
            stuff.setdefault(label, number)
