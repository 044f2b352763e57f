"""Writer of COCO panoptic results: id-PNGs and one JSON, as read by panopticapi and test servers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePath
from types import TracebackType
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from refine.errors import RefineError
from refine.files import name_problem, read_json, write_bytes, write_error, write_json
from refine.formats.image_list import ImageFile
from refine.formats.journal import Journal, other_settings
from refine.formats.png import read_container
from refine.formats.results.saver import Part, Saver
from refine.formats.runs import Runs

if TYPE_CHECKING:
    from refine.structures import Categories, PanopticResult

JOURNAL = "unfinished.jsonl"
"""Name of the journal in the folder of results."""

Entry = dict[str, dict[str, Any]]
"""`image` and `annotation` of a result, entries of the JSON."""


def write_png(path: str | Path, segment_ids: np.ndarray) -> None:
    """Write segment ids, [H, W] integer, as an id-PNG, atomically.

    Raises:
        ValueError: the ids are not a map of integers in 0..2^24-1.
        RefineError: the file cannot be written.
    """
    if segment_ids.ndim != 2 or segment_ids.dtype.kind not in "iu" or not segment_ids.size:
        raise ValueError(f"write_png: expected integers [H, W], got {segment_ids.dtype} {segment_ids.shape}")
    if segment_ids.min() < 0 or segment_ids.max() >= 2**24:
        raise ValueError(f"write_png: expected ids 0..2^24-1, got {segment_ids.min()}..{segment_ids.max()}")
    rgb0 = np.ascontiguousarray(segment_ids, "<u4").view(np.uint8).reshape(*segment_ids.shape, 4)
    # OpenCV's default (fast compression) writes a 640 x 480 map in 2 ms; the best compression takes ten times that.
    _, data = cv2.imencode(".png", cv2.cvtColor(rgb0, cv2.COLOR_RGBA2BGR))
    write_bytes(path, data.data)


class PredictionWriter:
    """Writer of OUT/panoptic/NAME.png and the files of `savers` for each result, and finally OUT/panoptic.json.

        with PredictionWriter("out", categories) as writer:
            writer.add(image_id, "street.jpg", result)

    NAME is the file name of the image without suffix, including folders. If the block raises an exception, no JSON
    is written; a JSON of earlier results is removed before the first of them is replaced. If the block is
    interrupted (Ctrl-C, SIGTERM), the JSON lists the finished results.

    With `journal`, OUT/unfinished.jsonl lists the finished results until the JSON is written, so that `resume`
    finds them even after the process was killed.

    Args:
        out: output folder, created if necessary.
        categories: categories of the results.
        info: settings that the results depend on, written to `info` of the JSON; None omits the field.
        journal: whether to keep a journal.
        savers: further formats. A result counts as complete if it has the files of all of them. Those that join
            all images in one file get it from the complete results, before the JSON is written.
    """

    def __init__(
        self,
        out: str | Path,
        categories: Categories,
        info: dict[str, Any] | None = None,
        *,
        journal: bool = False,
        savers: Sequence[Saver] = (),
    ) -> None:
        self.out = Path(out)
        self.json = self.out / "panoptic.json"
        self.categories = categories
        self.savers = savers
        self._info = info
        self._entries: dict[str, Entry] = {}
        self._ids: set[int | str] = set()
        self._pngs: set[str] = set()
        self._rank: dict[str, int] = {}
        self._journal: Journal | None = None
        self._with_journal = journal
        self._begun = False

    def resume(self, images: Sequence[ImageFile]) -> set[str]:
        """Reuse the complete results of an earlier run, from its journal or else from its JSON.

        A result is reused if its PNG is complete, and no older than its image, as are the files of all savers.

        Args:
            images: all images of this run, in the order in which the JSON will list them.

        Returns:
            Names of the images whose results are reused.

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
            if entry and self._is_complete(entry, image):
                entry["image"]["id"] = entry["annotation"]["image_id"] = image.id
                self._keep(entry)
        return set(self._entries)

    def add(
        self,
        image_id: int | str,
        file_name: str,
        result: PanopticResult,
        files: Iterable[tuple[str, bytes]] = (),
    ) -> Path:
        """Write one result.

        Args:
            image_id: id of the image in the JSON.
            file_name: relative file name of the image, with any suffix.
            result: panoptic result.
            files: path below the folder and content of each file of `savers` (see `refine.savers.encode`).

        Returns:
            Path of the PNG.

        Raises:
            RefineError: an image with the same id, or the same name up to the suffix, was already written, or the
                name points outside the folder.
            WriteError: a file cannot be written. No file of this result remains, nor after an interruption.
            ValueError: areas of map and segments differ.
        """
        if problem := name_problem(file_name):
            raise RefineError(problem)
        png = PurePath(file_name).with_suffix(".png").as_posix()
        if png in self._pngs:
            raise RefineError(f"{file_name}: two images would be written as {png}; rename one")
        if image_id in self._ids:
            raise RefineError(f"{file_name}: image id {image_id} is already used; give each image its own id")
        segment_ids = result.segment_ids.cpu().numpy()
        _check_areas(result, segment_ids)
        self._begin()
        path = self.out / "panoptic" / png
        written = [path]
        try:
            for file in (file for saver in self.savers for file in saver.earlier(self.out, file_name)):
                _remove(file)
            write_png(path, segment_ids)
            for name, content in files:
                written.append(self.out / name)
                write_bytes(written[-1], content)
            self._record(image_id, file_name, png, result)
        except BaseException:  # also Ctrl-C: a result is listed with all its files, or none of them remains
            if file_name not in self._entries:
                for file in written:
                    with suppress(OSError):  # if the disk rejects this too, the file was never written
                        file.unlink()
            raise
        return path

    def close(self) -> Path:
        """Write the files that join all images, then the JSON, and return its path."""
        entries = sorted(self._entries.values(), key=lambda entry: self._rank.get(entry["image"]["file_name"], 0))
        for saver in self.savers:
            if saver.joint and saver.join:
                joint = saver.join(self._parts(saver, entries), self.categories)
                write_bytes(self.out / saver.joint, b"".join(joint))
        content = {
            "images": [entry["image"] for entry in entries],
            "annotations": [entry["annotation"] for entry in entries],
            "categories": self.categories.to_json(),
        }
        write_json(self.json, content if self._info is None else {"info": self._info} | content)
        if self._journal is not None:
            self._journal.remove()
        return self.json

    def _parts(self, saver: Saver, entries: Iterable[Entry]) -> Iterator[Part]:
        """Yield the parts that a saver's joint file is made from."""
        for entry in entries:
            (path,) = saver.paths(entry["image"]["file_name"], entry["annotation"]["segments_info"])
            yield entry["image"], read_json(self.out / path)

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
        """Prepare for the first result: open the journal and remove files about results that will be replaced."""
        if self._begun:
            return
        if self._with_journal and self._journal is None:
            self._journal = Journal(self.out / JOURNAL, self._settings())
            self._journal.append(*self._entries.values())
        for path in (self.json, *(self.out / saver.joint for saver in self.savers if saver.joint)):
            _remove(path)
        self._begun = True

    def _record(self, image_id: int | str, file_name: str, png: str, result: PanopticResult) -> None:
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
        """Return the entries of an existing JSON."""
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

    def _is_complete(self, entry: Entry, image: ImageFile) -> bool:
        """Return whether the files of a result are complete and not older than the image."""
        path = self.out / "panoptic" / entry["annotation"]["file_name"]
        infos = entry["annotation"]["segments_info"]
        names = [name for saver in self.savers for name in saver.paths(image.name, infos)]
        try:
            read_container(path, (entry["image"]["height"], entry["image"]["width"]))
            since = image.path.stat().st_mtime if image.path.exists() else 0.0
            return all(file.stat().st_mtime >= since for file in (path, *(self.out / name for name in names)))
        except (RefineError, OSError):
            return False


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise write_error(path, error) from error


def _check_areas(result: PanopticResult, segment_ids: np.ndarray) -> None:
    """Raise ValueError if the areas of the segments differ from the pixels of the map."""
    ids, pixels = Runs.from_map(segment_ids).areas()
    shown = {i: n for i, n in zip(ids.tolist(), pixels.tolist(), strict=True) if i}
    stated = {segment.id: segment.area for segment in result.segments}
    if shown != stated:
        wrong = min(i for i in shown | stated if shown.get(i) != stated.get(i))
        raise ValueError(
            f"PanopticResult: segment {wrong} has {shown.get(wrong, 0)} pixels, but its area is {stated.get(wrong)}"
        )
