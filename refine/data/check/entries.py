"""Faults of a panoptic JSON that can be seen without looking at a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from refine.data.check.report import Finding, Report

TINY = 32
"""Pixels; a picture with a shorter side is rather a mistake."""


@dataclass
class Entry:
    """An annotated picture, as far as its entries could be read.

    Attributes:
        image_id: the data set's.
        image, png: files of the picture (None if it has no name) and of its segments.
        size: (height, width) as the JSON says; None if it does not say.
        segments: by segment id, entries with a known category.
        dubious: ids in the list whose entries are faulty (and told); their pixels are not told again.
    """

    image_id: int | str
    image: Path | None
    png: Path
    size: tuple[int, int] | None
    segments: dict[int, dict[str, Any]]
    dubious: set[int]


class EntryCheck:
    """Goes through the lists of a panoptic JSON and writes what is wrong into a report.

    Args:
        path: of the JSON, for messages.
        report: to write into.
    """

    def __init__(self, path: str | Path, report: Report) -> None:
        self.path = str(path)
        self.report = report

    def _error(self, kind: str, message: str) -> None:
        self.report.errors.append(Finding(kind, self.path, message))

    def _warn(self, kind: str, message: str) -> None:
        self.report.warnings.append(Finding(kind, self.path, message))

    def categories(self, entries: Sequence[Any]) -> dict[int, bool]:
        """Check `categories`: id -> isthing of all that have an id (a missing isthing counts as stuff)."""
        known: dict[int, bool] = {}
        names: dict[str, int] = {}
        if not entries:
            self._error("category", "categories: the list is empty; give at least one category")
        for n, entry in enumerate(entries):
            where = f"categories[{n}]"
            entry = entry if isinstance(entry, dict) else {}
            if not _is_int(entry.get("id")):
                self._error("category", f"{where}: id is {entry.get('id')!r}; give an integer")
                continue
            number, name = entry["id"], entry.get("name")
            where += f" (id {number})"
            if number in known:
                self._error("category", f"{where}: id {number} is used twice; make ids unique")
            if not isinstance(name, str):
                self._error("category", f"{where}: name is {name!r}; give a text")
            elif name in names:
                self._error("category", f"{where}: {name!r} is also the name of id {names[name]}; rename one")
            else:
                names[name] = number
            if entry.get("isthing") not in (0, 1):
                missing = "missing" if "isthing" not in entry else repr(entry["isthing"])
                self._error("category", f"{where}: isthing is {missing}; give 1 (countable) or 0 (stuff)")
            color = entry.get("color")
            if color and not (_are_numbers(color, 3) and all(0 <= c <= 255 for c in color)):
                self._error("category", f"{where}: color is {color!r}; give [R, G, B] of 0-255, or none")
            known[number] = bool(entry.get("isthing"))
        for isthing, name in ((True, "thing"), (False, "stuff")):
            if known and isthing not in known.values():
                self._warn("category", f"categories: there is no {name} class")
        return known

    def images(self, entries: Sequence[Any]) -> dict[int | str, tuple[str | None, tuple[int, int] | None]]:
        """Check `images`: id -> (file name or None, (height, width) or None) of all that have an id."""
        known: dict[int | str, tuple[str | None, tuple[int, int] | None]] = {}
        files: dict[str, int | str] = {}
        for n, entry in enumerate(entries):
            where = f"images[{n}]"
            entry = entry if isinstance(entry, dict) else {}
            number, name = entry.get("id"), entry.get("file_name")
            if not _is_id(number):
                self._error("image", f"{where}: id is {number!r}; give an integer or a text")
                continue
            where += f" (id {number})"
            if number in known:
                self._error("image", f"{where}: id {number} is used twice; make ids unique")
                continue
            height, width, size = entry.get("height"), entry.get("width"), None
            if _is_int(height) and _is_int(width) and min(height, width) > 0:
                size = height, width
                if min(size) < TINY:
                    self._warn("image", f"{where}: has only {width} × {height} pixels")
            else:
                self._error("image", f"{where}: height and width are {height!r} and {width!r}; give pixels")
            if not isinstance(name, str) or not name:
                self._error("image", f"{where}: file_name is {name!r}; give the picture's")
                name = None
            elif name in files:
                self._warn("image", f"{where}: {name} is also the picture of image {files[name]}")
            else:
                files[name] = number
            known[number] = name, size
        return known

    def annotations(
        self,
        entries: Sequence[Any],
        images: Mapping[int | str, tuple[str | None, tuple[int, int] | None]],
        categories: dict[int, bool],
        picture_folder: Path,
        segment_folder: Path,
    ) -> list[Entry]:
        """Check `annotations`; gives those whose files can be looked at."""
        found: list[Entry] = []
        seen: set[int | str] = set()
        files: dict[str, int | str] = {}
        for n, entry in enumerate(entries):
            where = f"annotations[{n}]"
            entry = entry if isinstance(entry, dict) else {}
            number, name = entry.get("image_id"), entry.get("file_name")
            if not _is_id(number) or number not in images:
                self._error("annotation", f"{where}: image_id {number!r} is not in `images`; add it or drop this")
                continue
            where = f"annotation of image {number}"
            if number in seen:
                self._error("annotation", f"{where}: annotations[{n}] is the second one; keep one")
                continue
            seen.add(number)
            if not isinstance(name, str) or not name:
                self._error("annotation", f"{where}: file_name is {name!r}; give the id-PNG's")
            elif name in files:
                self._error("annotation", f"{where}: {name} is also the PNG of image {files[name]}; give its own")
            else:
                files[name] = number
            infos = entry.get("segments_info")
            if not isinstance(infos, list):
                self._error("annotation", f"{where}: has no list segments_info; give it")
            elif isinstance(name, str) and name:
                segments, dubious = self._segments(infos, categories, where)
                picture, size = images[number]
                image = picture_folder / picture if picture is not None else None
                found.append(Entry(number, image, segment_folder / name, size, segments, dubious))
        for number in images:
            if number not in seen:
                self._warn("image", f"image {number} ({images[number][0]}) has no annotation and is left out")
        if not entries:
            self._error("annotation", "annotations: the list is empty; annotate at least one picture")
        return found

    def _segments(
        self, infos: Sequence[Any], categories: dict[int, bool], where: str
    ) -> tuple[dict[int, dict[str, Any]], set[int]]:
        """Check `segments_info`: good entries by id, ids of the others."""
        good: dict[int, dict[str, Any]] = {}
        place: dict[int, int] = {}
        stuff: dict[int, int] = {}
        for k, info in enumerate(infos):
            info = info if isinstance(info, dict) else {}
            number, category = info.get("id"), info.get("category_id")
            if not _is_int(number) or not 0 < number < 1 << 24:
                self._error("segment", f"{where}: segments_info[{k}]: id is {number!r}; give 1 to 16777215")
                continue
            name = f"{where}: segment {number}"
            if number in place:
                self._error(
                    "segment",
                    f"{name}: segments_info[{place[number]}] and [{k}] both use this id; paint one with another id",
                )
                continue
            place[number] = k
            if not _is_int(category) or category not in categories:
                self._error("segment", f"{name}: unknown category_id {category!r}; correct it or add the category")
                continue
            crowd = info.get("iscrowd", 0)
            if crowd not in (0, 1):
                self._error("segment", f"{name}: iscrowd is {crowd!r}; give 0 or 1")
            elif crowd and not categories[category]:
                self._warn("segment", f"{name}: is a crowd of the stuff class {category}")
            if not categories[category]:
                if category in stuff:
                    self._warn("segment", f"{name}: stuff class {category} already has segment {stuff[category]}")
                stuff.setdefault(category, number)
            good[number] = info
        return good, place.keys() - good.keys()


def _is_int(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_id(value: Any) -> TypeGuard[int | str]:
    return _is_int(value) or isinstance(value, str)


def _are_numbers(value: Any, count: int) -> bool:
    return isinstance(value, list | tuple) and len(value) == count and all(_is_int(v) for v in value)
