"""COCO panoptic results on disk: id-PNGs and one JSON, as panopticapi and test servers read them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePath
from types import TracebackType
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from refine.errors import RefineError, WriteError
from refine.files import name_problem, read_json, write_bytes, write_error, write_json
from refine.formats.image_list import ImageFile
from refine.formats.journal import Journal, other_settings
from refine.formats.png import read_container
from refine.formats.runs import Runs

if TYPE_CHECKING:
    from refine.structures import Categories, PanopticResult

JOURNAL = "unfinished.jsonl"
"""Name of the journal in the folder of results."""

Entry = dict[str, dict[str, Any]]
"""`image` and `annotation` of a result, as the JSON has them."""


def write_png(path: str | Path, segment_ids: np.ndarray) -> None:
    """Write segment ids [H, W] as an id-PNG, atomically.

    Raises:
        ValueError: not a map of integers in 0..2^24-1.
        RefineError: the folder cannot be written.
    """
    if segment_ids.ndim != 2 or segment_ids.dtype.kind not in "iu" or not segment_ids.size:
        raise ValueError(f"write_png: expected integers [H, W], got {segment_ids.dtype} {segment_ids.shape}")
    if segment_ids.min() < 0 or segment_ids.max() >= 2**24:
        raise ValueError(f"write_png: ids are {segment_ids.min()}..{segment_ids.max()}, expected 0..2^24-1")
    rgb0 = np.ascontiguousarray(segment_ids, "<u4").view(np.uint8).reshape(*segment_ids.shape, 4)
    # OpenCV's own setting (fast compression) writes a 640 x 480 map in 2 ms; the smallest takes ten times it.
    _, data = cv2.imencode(".png", cv2.cvtColor(rgb0, cv2.COLOR_RGBA2BGR))
    write_bytes(path, data.data)


class PredictionWriter:
    """Writes results one by one: OUT/panoptic/NAME.png, OUT/overlays/NAME.jpg, and at the end OUT/panoptic.json.

        with PredictionWriter("out", categories) as writer:
            writer.add(image_id, "street.jpg", result)

    NAME is the image's file name without its suffix; folders in it are kept. The JSON is not written if the block
    ends with an error, and one of earlier results is removed before the first of these is replaced. If the block
    is interrupted (Ctrl-C, SIGTERM), the JSON lists what is finished.

    With `journal`, OUT/unfinished.jsonl lists the finished results until the JSON does, so that even after
    a kill `resume` finds them.

    Args:
        out: folder, made if absent.
        categories: categories of the results.
        info: what results depend on, for `info` of the JSON; None leaves the field out.
        journal: keep a journal.
    """

    def __init__(
        self, out: str | Path, categories: Categories, info: dict[str, Any] | None = None, *, journal: bool = False
    ) -> None:
        self.out = Path(out)
        self.json = self.out / "panoptic.json"
        self.categories = categories
        self._info = info
        self._entries: dict[str, Entry] = {}
        self._ids: set[int | str] = set()
        self._pngs: set[str] = set()
        self._rank: dict[str, int] = {}
        self._journal: Journal | None = None
        self._with_journal = journal
        self._begun = False

    def resume(self, images: Sequence[ImageFile], overlays: bool) -> set[str]:
        """Take over the results of an earlier run that are whole: those of its journal, or else of its JSON.

        A result counts if its PNG (and overlay) is whole and not older than its image.

        Args:
            images: all images of this run, in the order in which the JSON is to list them.
            overlays: overlays are wanted too.

        Returns:
            The names of the images whose results are taken over.

        Raises:
            RefineError: the earlier results were written with other settings.
        """
        self._rank = {image.name: n for n, image in enumerate(images)}
        path = self.out / JOURNAL
        if path.is_file():
            self._journal = Journal(path, self._settings(), keep=True)
            earlier = self._journal.entries
        else:
            earlier = self._read_json()
        latest = {entry["image"]["file_name"]: entry for entry in earlier}
        for image in images:
            entry = latest.get(image.name)
            if entry and self._is_whole(entry, image, overlays):
                entry["image"]["id"] = entry["annotation"]["image_id"] = image.id
                self._keep(entry)
        return set(self._entries)

    def add(
        self, image_id: int | str, file_name: str, result: PanopticResult, overlay: bytes | None = None
    ) -> Path:
        """Write one result.

        Args:
            image_id: id of the image in the JSON.
            file_name: the image's file name, relative, with any suffix.
            result: segments and map.
            overlay: content of a JPEG to write as the overlay.

        Returns:
            Path of the PNG.

        Raises:
            RefineError: an image of the same id, or the same name but for the suffix, was written before, or the
                name leads out of the folder.
            WriteError: a file cannot be written; then none of this result is there.
            ValueError: the map contradicts the segments.
        """
        if problem := name_problem(file_name):
            raise RefineError(problem)
        png = PurePath(file_name).with_suffix(".png").as_posix()
        if png in self._pngs:
            raise RefineError(f"{file_name}: two images would be written as {png}; rename one")
        if image_id in self._ids:
            raise RefineError(f"{file_name}: image id {image_id} was written before; give each image its own")
        segment_ids = result.segment_ids.cpu().numpy()
        _check_areas(result, segment_ids)
        self._begin()
        path = self.out / "panoptic" / png
        drawn = self.overlay_path(file_name)
        try:
            write_png(path, segment_ids)
            if overlay is not None:
                write_bytes(drawn, overlay)
            self._note(image_id, file_name, png, result)
        except WriteError:
            for file in (path, drawn) if overlay is not None else (path,):
                with suppress(OSError):  # a disk that refuses this too has refused the file
                    file.unlink()
            raise
        return path

    def overlay_path(self, file_name: str) -> Path:
        """Path of the overlay of an image."""
        return self.out / "overlays" / PurePath(file_name).with_suffix(".jpg")

    def close(self) -> Path:
        """Write the JSON; returns its path."""
        entries = sorted(self._entries.values(), key=lambda entry: self._rank.get(entry["image"]["file_name"], 0))
        content = {
            "images": [entry["image"] for entry in entries],
            "annotations": [entry["annotation"] for entry in entries],
            "categories": self.categories.to_json(),
        }
        write_json(self.json, content if self._info is None else {"info": self._info} | content)
        if self._journal is not None:
            self._journal.remove()
        return self.json

    def __enter__(self) -> PredictionWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or (not issubclass(kind, Exception) and self._begun):
            self.close()
        elif self._journal is not None:
            self._journal.close()

    def _settings(self) -> dict[str, Any]:
        return self._info or {}

    def _begin(self) -> None:
        """Before the first result: open the journal, and remove a JSON whose maps are about to be replaced."""
        if self._begun:
            return
        if self._with_journal and self._journal is None:
            self._journal = Journal(self.out / JOURNAL, self._settings())
            self._journal.append(*self._entries.values())
        try:
            self.json.unlink(missing_ok=True)
        except OSError as error:
            raise write_error(self.json, error) from error
        self._begun = True

    def _note(self, image_id: int | str, file_name: str, png: str, result: PanopticResult) -> None:
        height, width = result.segment_ids.shape
        entry: Entry = {
            "image": {"id": image_id, "file_name": file_name, "height": height, "width": width},
            "annotation": result.to_coco(image_id, png),
        }
        if self._journal is not None:
            self._journal.append(entry)
        self._keep(entry)

    def _keep(self, entry: Entry) -> None:
        image, annotation = entry["image"], entry["annotation"]
        self._entries[image["file_name"]] = entry
        self._ids.add(image["id"])
        self._pngs.add(annotation["file_name"])

    def _read_json(self) -> list[Entry]:
        """Entries of the JSON that is there."""
        if not self.json.is_file():
            return []
        content = read_json(self.json)
        match content:
            case {"images": list() as images, "annotations": list() as annotations, "info": dict() as info}:
                if info != self._settings():
                    raise other_settings(self.json, info, self._settings())
                maps = {annotation["image_id"]: annotation for annotation in annotations}
                return [{"image": i, "annotation": maps[i["id"]]} for i in images if i["id"] in maps]
        raise other_settings(self.json, {}, self._settings())

    def _is_whole(self, entry: Entry, image: ImageFile, overlays: bool) -> bool:
        """Whether the files of a result are whole and not older than the image."""
        path = self.out / "panoptic" / entry["annotation"]["file_name"]
        drawn = self.overlay_path(image.name)
        try:
            read_container(path, (entry["image"]["height"], entry["image"]["width"]))
            since = image.path.stat().st_mtime if image.path.exists() else 0.0
            return path.stat().st_mtime >= since and (not overlays or drawn.stat().st_mtime >= since)
        except (RefineError, OSError):
            return False


def _check_areas(result: PanopticResult, segment_ids: np.ndarray) -> None:
    """Hold what the JSON will say against what the PNG will show."""
    ids, pixels = Runs.from_map(segment_ids).areas()
    shown = {i: n for i, n in zip(ids.tolist(), pixels.tolist(), strict=True) if i}
    stated = {segment.id: segment.area for segment in result.segments}
    if shown != stated:
        wrong = min(i for i in shown | stated if shown.get(i) != stated.get(i))
        raise ValueError(
            f"PanopticResult: segment {wrong} shows {shown.get(wrong, 0)} pixels, its area is {stated.get(wrong)}"
        )
