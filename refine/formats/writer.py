"""Writer of COCO panoptic results: id-PNGs and one JSON, as read by panopticapi and test servers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any

from refine.errors import RefineError
from refine.formats.earlier import earlier_results
from refine.formats.image_list import ImageFile
from refine.formats.journal import Journal, journal_path, journals, open_journal, remove_journal
from refine.formats.result_files import ResultFiles, Written, png_name, remove
from refine.formats.results.saver import Saver
from refine.formats.settings import CLASSES
from refine.formats.shards import (
    FAILED,
    Shard,
    ShardHead,
    shard_lists,
    write_joint_files,
    write_shard,
)
from refine.formats.stream import (
    SOURCES,
    Entry,
    results_info,
    stream_panoptic_json,
    write_sources,
)
from refine.storage import Location, Stamp, Url, location

if TYPE_CHECKING:
    from torch import Tensor

    from refine.structures import Categories, PanopticResult, Segment


class PredictionWriter:
    """Writer of OUT/panoptic/NAME.png and the files of `savers` for each result, and finally OUT/panoptic.json.

        with PredictionWriter("out", categories) as writer:
            writer.add(image_id, "street.jpg", result)

    NAME is the file name of the image without suffix, including folders. If the block raises an exception, no JSON
    is written; a JSON of earlier results is removed before the first of them is replaced, and so are the lists of
    runs that divided the images into other shards, which would describe the new maps wrongly. If the block is
    interrupted (Ctrl-C, SIGTERM), the JSON lists the finished results. The failed.json of an earlier run is removed
    too.

    OUT/unfinished.jsonl lists the finished results until the JSON is written from it, line by line: memory grows by
    a few hundred bytes per image, whatever the number of its segments. It stays if the block raises an exception
    after a result, or the process is killed: for `resume`, and as a sign that the PNGs are results.

    Args:
        out: path or URL of the output folder, created if necessary.
        categories: categories of the results.
        info: settings that the results depend on, written to `info` of the JSON (see `results_info`).
        shard: (number, count) if this run writes one of `count` parts of the results, of which `merge_shards` makes
            the JSON.
        savers: further formats. A result counts as complete if it has the files of all of them. Those that join
            all images in one file get it from the complete results, before the JSON is written.
        known: formats whose files of earlier runs that join all images are removed, because they would differ.
    """

    def __init__(
        self,
        out: str | Location,
        categories: Categories,
        info: dict[str, Any] | None = None,
        *,
        shard: Shard | None = None,
        savers: Sequence[Saver] = (),
        known: Sequence[Saver] = (),
    ) -> None:
        self.out = location(out)
        self.json = self.out / "panoptic.json"
        self.categories = categories
        self.savers = savers
        self._joint = {saver.joint for saver in [*savers, *known] if saver.joint}
        self._files = ResultFiles(self.out, savers)
        self._info = results_info(info)
        self._settings = {**self._info, CLASSES: categories.to_json()}
        self._shard = shard
        self._part = "" if shard is None else str(shard)
        self._journal_path = journal_path(self.out, self._part)
        self._journal: Journal | None = None
        self._lines: dict[str, int] = {}  # name of each PNG -> offset of its line in the journal
        self._ids: set[int | str] = set()
        self._new_ids: dict[str, int | str] = {}  # of resumed results that the journal lists with other ids
        self._rank: dict[str, int] = {}
        self._begun = False
        self._beginning = Lock()

    def expect(self, images: Iterable[ImageFile]) -> None:
        """Set the order in which the JSON lists the images; without it, that of recording."""
        self._rank = {png_name(image.name): n for n, image in enumerate(images)}

    def resume(self, images: Sequence[ImageFile]) -> set[str]:
        """Reuse the complete results of an earlier run, from its journal or else from its JSON.

        A result is reused if its files are complete, and its image has the same stamp as then.

        Args:
            images: all images of this run, in the order in which the JSON will list them.

        Returns:
            Names of the images whose results are reused.

        Raises:
            RefineError: the earlier results were written with other settings.
        """
        self.expect(images)
        path = self._journal_path
        found = path.is_file() or (isinstance(path, Url) and path.is_dir())
        earlier = [] if found else earlier_results(self.out, self._shard, self._settings)
        if not (earlier or found):
            return set()
        self._journal = journal = open_journal(path, self._settings, keep=True)
        for entry in earlier:
            journal.append(entry)
        latest = {entry["image"]["file_name"]: offset for offset, entry in journal.entries()}
        known = [image for image in images if image.name in latest]
        finished = set()
        for image, entry in zip(known, journal.read(latest[image.name] for image in known), strict=True):
            if self._files.are_complete(entry, image):
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
        source: Stamp | None = None,
    ) -> Location:
        """Write and record one result, and return the path of its PNG; arguments and errors as in `write`."""
        written = self.write(image_id, file_name, result, files, source)
        self.record(written)
        return written.paths[0]

    def write(
        self,
        image_id: int | str,
        file_name: str,
        result: PanopticResult,
        files: Iterable[tuple[str, bytes]] = (),
        source: Stamp | None = None,
    ) -> Written:
        """Write the files of one result, in any thread; either `record` or `discard` has to follow.

        Args:
            image_id: id of the image in the JSON.
            file_name: relative file name of the image, with any suffix.
            result: panoptic result.
            files: path below the folder and content of each file of `savers` (see `refine.savers.encode`).
            source: stamp of the image (`refine.storage.stamp`), by which `resume` recognises it.

        Raises:
            RefineError: an image with the same id, or the same name up to the suffix, was already recorded, or the
                name points outside the folder.
            WriteError: a file cannot be written. No file of this result remains, nor after an interruption.
            ValueError: areas of map and segments differ.
        """
        self._check(image_id, file_name)
        self.begin()
        return self._files.write(image_id, file_name, result, files, source)

    def _check(self, image_id: int | str, file_name: str) -> None:
        """Raise RefineError if the name or the id of an image is used."""
        png = png_name(file_name)
        if png in self._lines:
            raise RefineError(f"{file_name}: two images would be written as {png}; rename one")
        if image_id in self._ids:
            raise RefineError(f"{file_name}: image id {image_id} is already used; give each image its own id")

    def write_bands(
        self,
        image_id: int | str,
        file_name: str,
        size: tuple[int, int],
        segments: Sequence[Segment],
        bands: Iterable[Tensor],
        mpp: float | None = None,
        source: Stamp | None = None,
    ) -> Written:
        """Write the files of a large image; see `write` and `ResultFiles.write_bands`."""
        self._check(image_id, file_name)
        self.begin()
        return self._files.write_bands(image_id, file_name, size, segments, bands, mpp, source)

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
            self._files.discard(written)

    def close(self) -> Location:
        """Write the files that join all images and then the JSON, or the list of this shard; return its path."""
        if self._shard is not None:
            path = self._shard.path(self.out)
            formats = sorted({name for saver in self.savers for name in saver.names})
            head = ShardHead(self._info, self.categories.to_json(), formats, self._shard.images)
            write_shard(path, head, self._entries())
        else:
            path = self.json
            write_joint_files(self.out, self.savers, self._entries, self.categories)
            write_sources(self.out, self._entries)
            stream_panoptic_json(path, self._entries, self.categories.to_json(), self._info)
        if self._journal is not None:
            self._journal.remove()
        return path

    def __enter__(self) -> PredictionWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or (not issubclass(kind, Exception) and self._begun):
            self.close()
        elif self._journal is not None:
            self._journal.close() if self._lines else self._journal.remove()

    def begin(self) -> None:
        """Prepare for the first result: open the journal and remove files about results that will be replaced."""
        with self._beginning:
            if self._begun:
                return
            if self._journal is None:
                self._journal = open_journal(self._journal_path, self._settings)
            self._remove_lists()
            for name in (self.json.name, SOURCES, FAILED, *sorted(self._joint)):
                remove(self.out / name)
            self._begun = True

    def _remove_lists(self) -> None:
        """Remove the lists, finished or not, of results that this run replaces: of itself or of other parts."""
        count = None if self._shard is None else self._shard.count
        for part, path in journals(self.out):
            if part != self._part and (count is None or not part.endswith(f"-of-{count}")):
                remove_journal(path)
        for shard, path in shard_lists(self.out):
            if shard.count != count or str(shard) == self._part:
                remove(path)

    def _entries(self) -> Iterator[Entry]:
        """Yield the recorded results in the order of the JSON."""
        if self._journal is None:
            return
        names = sorted(self._lines, key=lambda png: self._rank.get(png_name(png), 0))
        for png, entry in zip(names, self._journal.read(self._lines[png] for png in names), strict=True):
            if png in self._new_ids:
                entry["image"]["id"] = entry["annotation"]["image_id"] = self._new_ids[png]
            yield entry
