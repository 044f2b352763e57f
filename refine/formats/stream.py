"""Writing of a panoptic JSON entry by entry, so that memory does not grow with the number of images."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from refine.storage import Location, replacing

Entry = dict[str, dict[str, Any]]
"""`image` and `annotation` of a result, entries of the JSON."""


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
