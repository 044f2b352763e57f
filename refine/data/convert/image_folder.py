"""Hugging Face `imagefolder` of panoptic segmentation: metadata.jsonl beside the images and their id images."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from refine.data.convert.hugging_face import LABELS, class_name, decode_ids, is_segment, read_names, segment_labels
from refine.data.convert.source import LabelMap, ReadOptions, Sample, Source, SourceClass, choose_split, inside
from refine.errors import RefineError, shown
from refine.files import read_bytes

METADATA = "metadata.jsonl"

IMAGES = ("file_name", "image_file_name")
"""Names of the field with the file of the image."""


def recognise(path: Path) -> bool:
    return bool(_files(path))


def read(path: Path, options: ReadOptions) -> Source:
    """List the lines of a split's metadata.jsonl.

    Each names the image (`file_name` or `image_file_name`) and the id image (`label_file_name`; also annotation,
    mask, panoptic), both relative to the folder of metadata.jsonl, and has `segments_info`. For the classes, see
    `hugging_face.read`.

    Raises:
        RefineError: there is no such file or field, or a name leads out of the folder.
    """
    files = _files(path)
    if not files:
        raise RefineError(f"{path}: contains no {METADATA}; give the folder of a data set with one")
    file = files[choose_split(str(path), sorted(files), options.split)]
    names = read_names(file.parent)
    things: dict[int, bool] = {}
    samples = []
    for where, entry in _lines(file):
        image, label = _file(file, entry, IMAGES, where), _file(file, entry, LABEL_FIELDS, where)
        infos = entry.get("segments_info")
        if not isinstance(infos, list) or not all(is_segment(info) for info in infos):
            raise RefineError(f"{where}: segments_info is {shown(infos)}; expected id and category_id")
        for info in infos:
            things[info["category_id"]] = bool(info.get("isthing", 1))
        name = image.relative_to(file.parent).as_posix()
        samples.append(Sample(name, image, label, partial(_read, label, infos, names, where), others=(file,)))
    classes = [
        SourceClass(class_name(names, n, str(file)), n, things.get(n, True)) for n in sorted(names or things)
    ]
    return Source(classes, samples)


LABEL_FIELDS = tuple(f"{name}_file_name" for name in LABELS)
"""Names of the field with the file of the id image."""


def _files(path: Path) -> dict[str, Path]:
    """Return the metadata files by split, the name of their folder; the one of the data set itself is "all"."""
    if not path.is_dir():
        return {}
    own = path / METADATA
    return (
        {"all": own} if own.is_file() else {file.parent.name: file for file in sorted(path.glob(f"*/{METADATA}"))}
    )


def _lines(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place and the content of each line."""
    for n, line in enumerate(read_bytes(file).decode("utf-8", "replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RefineError(f"{file}:{n}: is no JSON ({error}); correct it") from error
        if not isinstance(entry, dict):
            raise RefineError(f"{file}:{n}: got {shown(entry)}; expected an object")
        yield f"{file}:{n}", entry


def _file(metadata: Path, entry: dict[str, Any], fields: tuple[str, ...], where: str) -> Path:
    field = next((name for name in fields if name in entry), None)
    if field is None:
        raise RefineError(f"{where}: expected one of {', '.join(fields)}, got {', '.join(entry)}")
    path = inside(metadata.parent, entry[field], f"{where}: {field}")
    if not path.is_file():
        raise RefineError(f"{where}: {field}: {path} is missing; copy the data set again")
    return path


def _read(file: Path, infos: list[dict[str, Any]], names: dict[int, str], where: str) -> LabelMap:
    return LabelMap(decode_ids(read_bytes(file), str(file)), segment_labels(infos, names, where))
