"""Writing of a panoptic JSON entry by entry, so that memory does not grow with the number of images."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from refine import __version__
from refine.errors import RefineError
from refine.storage import Location, Stamp, local_copy, read_start, replacing

Entry = dict[str, Any]
"""`image` and `annotation` of a result, entries of the JSON; `source`, if known, is the stamp of the image."""

DESCRIPTION = "Panoptic results of refine"
"""Begin of `info.description` in the JSON of results, by which `is_results_json` recognises it."""

SOURCES = "sources.jsonl"
"""Name of the file in the folder of results that lists the stamps of the images, one line [name, *stamp] each."""


def stream_panoptic_json(
    path: Location,
    entries: Callable[[], Iterable[Entry]],
    categories: list[dict[str, Any]],
    info: dict[str, Any] | None = None,
) -> None:
    """Write a COCO panoptic JSON atomically, with the same bytes as `refine.files.write_json` of the whole.

    Args:
        path: path of the file.
        entries: returns the entries in their order; called twice, for `images` and for `annotations`.
        categories: the field `categories`.
        info: the field `info`; None omits it.

    Raises:
        WriteError: the file cannot be written. An earlier file of this name is unchanged.
    """
    with replacing(path) as file:
        for text in _texts(entries, categories, info):
            file.write(text.encode())


def results_info(info: dict[str, Any] | None) -> dict[str, Any]:
    """Return the field `info` of the JSON of results: their description, and the settings they depend on."""
    info = info or {}
    model = f", model {info['model']}" if "model" in info else ""
    description = {"description": f"{DESCRIPTION} {__version__}{model}"}
    return description | info | description  # first in the file, and not that of `info`


def is_results_json(path: Location) -> bool:
    """Return whether a JSON begins as that of results of refine, whatever was changed in it since."""
    start = f'{{"info": {{"description": "{DESCRIPTION}'.encode()
    return read_start(path, len(start)) == start


def write_sources(out: Location, entries: Callable[[], Iterable[Entry]]) -> None:
    """Write OUT/sources.jsonl atomically, unless no entry has a stamp."""
    if not any(entry.get("source") for entry in entries()):
        return
    with replacing(out / SOURCES) as file:
        for entry in entries():
            if stamp := entry.get("source"):
                file.write((_dump([entry["image"]["file_name"], *stamp]) + "\n").encode())


def read_sources(out: Location) -> dict[str, Stamp]:
    """Read OUT/sources.jsonl: the stamp of each image by its name. It is empty without the file.

    Raises:
        RefineError: the file is damaged.
    """
    path = out / SOURCES
    if not path.is_file():
        return {}
    with local_copy(path) as copy, copy.open("rb") as file:
        try:
            return {name: stamp for name, *stamp in map(json.loads, file)}
        except (ValueError, TypeError) as error:
            raise RefineError(f"{path}: is damaged ({error}); run again without --resume") from error


def _texts(
    entries: Callable[[], Iterable[Entry]], categories: list[dict[str, Any]], info: dict[str, Any] | None
) -> Iterator[str]:
    yield "{"
    if info is not None:
        yield f'"info": {_dump(info)}, '
    for field, key in (("images", "image"), ("annotations", "annotation")):
        yield f'"{field}": ['
        for n, entry in enumerate(entries()):
            yield f"{', ' if n else ''}{_dump(entry[key])}"
        yield "], "
    yield f'"categories": {_dump(categories)}}}'


def _dump(value: Any) -> str:
    return json.dumps(value, allow_nan=False)
