"""Writer of COCO panoptic results: id-PNGs and one JSON, as read by panopticapi and test servers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from refine.errors import RefineError
from refine.files import name_problem, read_json, replacing, write_bytes, write_error
from refine.formats.id_png import write_png
from refine.formats.image_list import ImageFile
from refine.formats.journal import Journal, other_settings
from refine.formats.png import read_container
from refine.formats.results.saver import Part, Saver
from refine.formats.runs import Runs
from refine.formats.stream import Entry, stream_panoptic_json

if TYPE_CHECKING:
    from refine.structures import Categories, PanopticResult

JOURNAL = "unfinished.jsonl"
"""Name of the journal in the folder of results."""


@dataclass(frozen=True)
class Written:
    """Result whose files are written; `PredictionWriter.record` lists it.

    Attributes:
        entry: `image` and `annotation` of the JSON.
        paths: the files, first the PNG.
    """

    entry: Entry
    paths: list[Path]


class PredictionWriter:
    """Writer of OUT/panoptic/NAME.png and the files of `savers` for each result, and finally OUT/panoptic.json.

        with PredictionWriter("out", categories) as writer:
            writer.add(image_id, "street.jpg", result)

    NAME is the file name of the image without suffix, including folders. If the block raises an exception, no JSON
    is written; a JSON of earlier results is removed before the first of them is replaced. If the block is
    interrupted (Ctrl-C, SIGTERM), the JSON lists the finished results.

    OUT/unfinished.jsonl lists the finished results until the JSON is written from it, line by line: memory grows by
    a few hundred bytes per image, whatever the number of its segments.

    Args:
        out: output folder, created if necessary.
        categories: categories of the results.
        info: settings that the results depend on, written to `info` of the JSON; None omits the field.
        journal: whether OUT/unfinished.jsonl is kept if the block raises an exception, for `resume`, which also
            finds it after the process was killed.
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
        self._keep_journal = journal
        self._journal: Journal | None = None
        self._lines: dict[str, int] = {}  # name of each PNG -> offset of its line in the journal
        self._ids: set[int | str] = set()
        self._new_ids: dict[str, int | str] = {}  # of resumed results that the journal lists with other ids
        self._rank: dict[str, int] = {}
        self._begun = False
        self._beginning = Lock()

    def expect(self, images: Iterable[ImageFile]) -> None:
        """Set the order in which the JSON lists the images; without it, that of recording."""
        self._rank = {_png_name(image.name): n for n, image in enumerate(images)}

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
        self.expect(images)
        path = self.out / JOURNAL
        earlier = [] if path.is_file() else self._read_json()
        if not (earlier or path.is_file()):
            return set()
        self._journal = journal = Journal(path, self._settings(), keep=True)
        for entry in earlier:
            journal.append(entry)
        latest = {entry["image"]["file_name"]: offset for offset, entry in journal.entries()}
        known = [image for image in images if image.name in latest]
        finished = set()
        for image, entry in zip(known, journal.read(latest[image.name] for image in known), strict=True):
            if self._is_complete(entry, image):
                png = entry["annotation"]["file_name"]
                if entry["image"]["id"] != image.id:
                    self._new_ids[png] = image.id
                self._lines[png] = latest[image.name]
                self._ids.add(image.id)
                finished.add(image.name)
        return finished

    def add(
        self,
        image_id: int | str,
        file_name: str,
        result: PanopticResult,
        files: Iterable[tuple[str, bytes]] = (),
    ) -> Path:
        """Write and record one result, and return the path of its PNG; arguments and errors as in `write`."""
        written = self.write(image_id, file_name, result, files)
        self.record(written)
        return written.paths[0]

    def write(
        self,
        image_id: int | str,
        file_name: str,
        result: PanopticResult,
        files: Iterable[tuple[str, bytes]] = (),
    ) -> Written:
        """Write the files of one result, in any thread; either `record` or `discard` has to follow.

        Args:
            image_id: id of the image in the JSON.
            file_name: relative file name of the image, with any suffix.
            result: panoptic result.
            files: path below the folder and content of each file of `savers` (see `refine.savers.encode`).

        Raises:
            RefineError: an image with the same id, or the same name up to the suffix, was already recorded, or the
                name points outside the folder.
            WriteError: a file cannot be written. No file of this result remains, nor after an interruption.
            ValueError: areas of map and segments differ.
        """
        if problem := name_problem(file_name):
            raise RefineError(problem)
        png = _png_name(file_name)
        if png in self._lines:
            raise RefineError(f"{file_name}: two images would be written as {png}; rename one")
        if image_id in self._ids:
            raise RefineError(f"{file_name}: image id {image_id} is already used; give each image its own id")
        segment_ids = result.segment_ids.cpu().numpy()
        _check_areas(result, segment_ids)
        self._begin()
        height, width = segment_ids.shape
        entry = {
            "image": {"id": image_id, "file_name": file_name, "height": height, "width": width},
            "annotation": result.to_coco(image_id, png),
        }
        written = Written(entry, [self.out / "panoptic" / png])
        try:
            for file in (file for saver in self.savers for file in saver.earlier(self.out, file_name)):
                _remove(file)
            write_png(written.paths[0], segment_ids)
            for name, content in files:
                written.paths.append(self.out / name)
                write_bytes(written.paths[-1], content)
        except BaseException:  # also Ctrl-C
            self.discard(written)
            raise
        return written

    def record(self, written: Written) -> None:
        """List a result in the journal, and later in the JSON.

        Raises:
            WriteError: the journal cannot be written. No file of this result remains, nor after an interruption.
        """
        image, png = written.entry["image"], written.entry["annotation"]["file_name"]
        assert self._journal is not None  # since `write`
        try:
            self._lines[png] = self._journal.append(written.entry)
            self._ids.add(image["id"])
        except BaseException:
            self.discard(written)
            raise

    def discard(self, written: Written) -> None:
        """Remove the files of a result unless it is recorded."""
        if written.entry["annotation"]["file_name"] not in self._lines:
            for path in written.paths:
                with suppress(OSError):  # if the disk rejects this too, the file was never written
                    path.unlink()

    def close(self) -> Path:
        """Write the files that join all images, then the JSON, and return its path."""
        for saver in self.savers:
            if saver.joint and saver.join:
                with replacing(self.out / saver.joint) as file:
                    file.writelines(saver.join(self._parts(saver), self.categories))
        stream_panoptic_json(self.json, self._entries, self.categories.to_json(), self._info)
        if self._journal is not None:
            self._journal.remove()
        return self.json

    def _parts(self, saver: Saver) -> Iterator[Part]:
        """Yield the parts that a saver's joint file is made from."""
        for entry in self._entries():
            if PurePath(entry["annotation"]["file_name"]).suffix == ".png":  # larger maps have no other files
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
            self._journal.close() if self._keep_journal else self._journal.remove()

    def _settings(self) -> dict[str, Any]:
        return self._info or {}

    def _begin(self) -> None:
        """Prepare for the first result: open the journal and remove files about results that will be replaced."""
        with self._beginning:
            if self._begun:
                return
            if self._journal is None:
                self._journal = Journal(self.out / JOURNAL, self._settings())
            for path in (self.json, *(self.out / saver.joint for saver in self.savers if saver.joint)):
                _remove(path)
            self._begun = True

    def _entries(self) -> Iterator[Entry]:
        """Yield the recorded results in the order of the JSON."""
        if self._journal is None:
            return
        names = sorted(self._lines, key=lambda png: self._rank.get(png, 0))
        for png, entry in zip(names, self._journal.read(self._lines[png] for png in names), strict=True):
            if png in self._new_ids:
                entry["image"]["id"] = entry["annotation"]["image_id"] = self._new_ids[png]
            yield entry

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


def _png_name(file_name: str) -> str:
    """Return the name of an image's PNG relative to its folder."""
    return PurePath(file_name).with_suffix(".png").as_posix()


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
