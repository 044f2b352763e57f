"""Reader of COCO panoptic JSON (https://cocodataset.org/#format-data)."""

from __future__ import annotations

import ntpath
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

import numpy as np

from refine.errors import RefineError, shown
from refine.files import MAX_PIXELS, name_problem, no_collection, read_json
from refine.formats.id_tiff import TIFF_IDS, is_id_tiff
from refine.formats.segments_info import ID_LIMIT, segment_rows
from refine.structures import Categories

if TYPE_CHECKING:
    from pathlib import Path

LISTS = ("images", "annotations", "categories")
"""Lists of a data set; results may contain only `annotations`."""

MOST_PIXELS = 2**48
"""Most pixels of an image whose map is stored as TIFF."""

OnError = Callable[[str, str], None]
"""Called with the kind of the invalid entry ("category", "image", "annotation", "segment") and the message."""


class ImageEntry(NamedTuple):
    """Entry of `images`: file name, and (height, width) in pixels; None where missing or invalid."""

    file_name: str | None
    size: tuple[int, int] | None


class Annotation(NamedTuple):
    """Entry of `annotations`.

    Attributes:
        image_id: id of the annotated image.
        file_name: name of the id-PNG.
        position: index in the list of the JSON.
        rows: slice of `PanopticJson.table` with its segments.
    """

    image_id: int | str
    file_name: str
    position: int
    rows: slice


class PanopticJson:
    """Validated content of a COCO panoptic JSON.

    Args:
        path: path of the file.
        needs: lists that the file must contain. With `images`, every annotation needs an entry there, and every
            entry a file name, a height and a width. Annotations are read only if needed.
        categories: categories to use if the file contains none.
        on_error: called for each invalid entry, which is then skipped. None raises.
        large: whether images may be larger than PNGs can be read, and ids of maps stored as TIFF have 32 bits.

    Attributes:
        content: parsed file.
        categories: categories of the segments.
        images: image id -> entry of `images`.
        annotations: annotations, one per image, in the order of the file.
        table: [N, 4] int64, segments of all annotations; columns as in `refine.formats.segments_info`.

    Raises:
        RefineError: the file is not a JSON with these lists; without `on_error`, also if an entry is invalid.
    """

    @no_collection()
    def __init__(
        self,
        path: str | Path,
        *,
        needs: Sequence[str] = LISTS,
        categories: Categories | None = None,
        on_error: OnError | None = None,
        large: bool = False,
    ) -> None:
        self.path = os.fspath(path)
        self._fault = on_error or self._raise
        self._needs, self._large = needs, large
        self.content = self._read_lists()
        if categories is None or "categories" in self.content:
            categories = Categories.from_json(
                self.content.get("categories", []), str(path), partial(self._fault, "category")
            )
        self.categories = categories
        most = MOST_PIXELS if large else MAX_PIXELS
        entries = self.content.get("images", [])
        self.images = image_entries(entries, self._fault, needed="images" in needs, most=most)
        self.annotations: list[Annotation] = []
        self.table = np.empty((0, 4), np.int64)
        if "annotations" in needs:
            self._read_annotations(self.content["annotations"])

    def _raise(self, kind: str, message: str) -> None:
        raise RefineError(f"{self.path}: {message}")

    def _read_lists(self) -> dict[str, Any]:
        content = read_json(self.path)
        if not isinstance(content, dict):
            raise RefineError(
                f"{self.path}: expected a mapping, got {type(content).__name__}; give a COCO panoptic JSON"
            )
        for name in LISTS:
            if not isinstance(content.get(name, None if name in self._needs else []), list):
                raise RefineError(f"{self.path}: has no list `{name}`; give a COCO panoptic JSON")
        return content

    def _read_annotations(self, entries: Sequence[Any]) -> None:
        classes = {category.id: n for n, category in enumerate(self.categories)}
        seen: set[int | str] = set()
        rows: list[tuple[int, int, int, int]] = []
        for n, entry in enumerate(entries):
            entry = entry if isinstance(entry, dict) else {}
            image_id, name, infos = (entry.get(field) for field in ("image_id", "file_name", "segments_info"))
            if not is_id(image_id):
                self._fault(
                    "annotation",
                    f"annotations[{n}]: image_id is {shown(image_id)}; expected an integer or a string",
                )
                continue
            if "images" in self._needs and image_id not in self.images:
                self._fault(
                    "annotation",
                    f"annotations[{n}]: image_id {shown(image_id)} is not in `images`; add it or drop this",
                )
                continue
            where = f"annotation of image {image_id}"
            if image_id in seen:
                self._fault("annotation", f"{where}: annotations[{n}] is a duplicate; keep one")
                continue
            seen.add(image_id)
            problem = name_problem(name)
            if problem:
                self._fault("annotation", f"{where}: {problem}")
            if not isinstance(infos, list):
                self._fault("annotation", f"{where}: segments_info is {shown(infos)}; expected a list")
            elif isinstance(name, str) and not problem:
                begin = len(rows)
                limit = TIFF_IDS if self._large and is_id_tiff(name) else ID_LIMIT
                rows += segment_rows(infos, classes, partial(self._segment_fault, where), limit)
                self.annotations.append(Annotation(image_id, name, n, slice(begin, len(rows))))
        if not entries:
            self._fault("annotation", "annotations: the list is empty; annotate at least one image")
        self.table = np.array(rows, np.int64).reshape(-1, 4)

    def _segment_fault(self, where: str, message: str) -> None:
        self._fault("segment", f"{where}: {message}")

    def infos(self, annotation: Annotation) -> Mapping[int, Mapping[str, Any]]:
        """Return the valid entries of `segments_info` by segment id, unchanged from the file."""
        valid = set(self.table[annotation.rows, 0].tolist())
        infos: dict[int, Mapping[str, Any]] = {}
        for info in self.content["annotations"][annotation.position]["segments_info"]:
            if isinstance(info, dict) and is_id(info.get("id")) and info["id"] in valid:
                infos.setdefault(info["id"], info)
        return infos


def image_entries(
    entries: Sequence[Any], fault: OnError, *, needed: bool = True, most: int = MAX_PIXELS
) -> dict[int | str, ImageEntry]:
    """Read the list `images` of a COCO JSON of any kind.

    Args:
        entries: content of the list.
        fault: called for each invalid entry.
        needed: whether every entry needs a file name, a height and a width.
        most: maximum number of pixels of an image.

    Returns:
        Image id -> entry; entries without a valid id are skipped.
    """
    images: dict[int | str, ImageEntry] = {}
    for n, entry in enumerate(entries):
        entry = entry if isinstance(entry, dict) else {}
        image_id, where = entry.get("id"), f"images[{n}]"
        if not is_id(image_id):
            fault("image", f"{where}: id is {shown(image_id)}; expected an integer or a string")
            continue
        where += f" (id {image_id})"
        if image_id in images:
            fault("image", f"{where}: id {image_id} is used twice; make ids unique")
            continue
        height, width = entry.get("height"), entry.get("width")
        size = valid_size(height, width, most)
        if size is None and (needed or height is not None or width is not None):
            fault(
                "image",
                f"{where}: height and width are {shown(height)} and {shown(width)}; expected pixels, at most "
                f"{most:,} in all",
            )
        name = entry.get("file_name")
        problem = name_problem(name) if needed or name is not None else None
        if problem:
            fault("image", f"{where}: {problem}")
        images[image_id] = ImageEntry(None if problem else name, size)
    if needed and not entries:
        fault("image", "images: the list is empty; expected at least one image")
    return images


def is_id(value: Any) -> TypeGuard[int | str]:
    """Return whether a value can be an image id: an integer or a string."""
    return type(value) is int or isinstance(value, str)


def valid_size(height: Any, width: Any, most: int = MAX_PIXELS) -> tuple[int, int] | None:
    """Return (height, width) if they are positive integers, and their product is at most `most`; else None."""
    valid = type(height) is int and type(width) is int and min(height, width) > 0 and height * width <= most
    return (height, width) if valid else None


def differing_names(
    expected: Mapping[int | str, str | None], given: Mapping[int | str, str | None]
) -> Iterator[tuple[int | str, str, str]]:
    """Yield (id, given name, expected name) of ids that denote different images in two files.

    Names agree if they are equal up to folder and suffix, unless the given name is exactly that of another id. A
    missing name agrees with any. Non-numeric ids always agree, since tools do not assign them by counting.

    Args:
        expected, given: id -> name, or None if a file states none.
    """
    names = set(expected.values())
    for image_id, name in given.items():
        other = expected.get(image_id)
        if name is None or other is None or (isinstance(image_id, str) and not image_id.isdecimal()):
            continue
        if not _plain_names(name) & _plain_names(other) or (name != other and name in names):
            yield image_id, name, other


def _plain_names(name: str) -> set[str]:
    last = ntpath.basename(name)  # accepts both kinds of slashes
    return {last, ntpath.splitext(last)[0]}
