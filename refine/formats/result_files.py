"""Files of one result: its id-PNG and those of further formats."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from refine.errors import RefineError
from refine.files import name_problem, write_error
from refine.formats.id_png import write_png
from refine.formats.id_tiff import write_id_tiff
from refine.formats.image_list import ImageFile
from refine.formats.png import read_container
from refine.formats.results.saver import Saver
from refine.formats.runs import Runs
from refine.formats.stream import Entry
from refine.storage import Location, Stamp, modified, stamp, write_bytes

if TYPE_CHECKING:
    from torch import Tensor

    from refine.structures import PanopticResult, Segment


@dataclass(frozen=True)
class Written:
    """Result whose files are written; `PredictionWriter.record` lists it.

    Attributes:
        entry: `image` and `annotation` of the JSON.
        paths: the files, first the PNG.
    """

    entry: Entry
    paths: list[Location]


@dataclass(frozen=True)
class ResultFiles:
    """Writer of OUT/panoptic/NAME.png and the files of `savers`, in any process and thread; it keeps no list.

    Attributes:
        out: output folder.
        savers: further formats.
    """

    out: Location
    savers: Sequence[Saver] = ()

    def write(
        self,
        image_id: int | str,
        file_name: str,
        result: PanopticResult,
        files: Iterable[tuple[str, bytes]] = (),
        source: Stamp | None = None,
    ) -> Written:
        """Write the files of one result; see `PredictionWriter.write`."""
        if problem := name_problem(file_name):
            raise RefineError(problem)
        segment_ids = result.segment_ids.cpu().numpy()
        _check_areas(result, segment_ids)
        png, (height, width) = png_name(file_name), segment_ids.shape
        image = {"id": image_id, "file_name": file_name, "height": height, "width": width}
        entry = _entry(image, result.to_coco(image_id, png), source)
        png_path = self.out / "panoptic" / png
        written = Written(entry, [png_path])
        try:
            for file in (file for saver in self.savers for file in saver.earlier(self.out, file_name)):
                remove(file)
            write_png(png_path, segment_ids)
            for name, content in files:
                written.paths.append(self.out / name)
                write_bytes(written.paths[-1], content)
        except BaseException:  # also Ctrl-C
            self.discard(written)
            raise
        return written

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
        """Write the map of a large image as a tiled TIFF of 32 bits, band by band; see `write_id_tiff`.

        The TIFF lies where the PNG of other images does, with the suffix .tif. No other format is written.
        """
        if problem := name_problem(file_name):
            raise RefineError(problem)
        name = PurePath(file_name).with_suffix(".tif").as_posix()
        path = self.out / "panoptic" / name
        if not isinstance(path, Path):
            raise RefineError(f"{path}: large maps are written to local folders only; give a local --out")
        infos = [segment.to_json() for segment in segments]
        annotation = {"image_id": image_id, "file_name": name, "segments_info": infos}
        image = {"id": image_id, "file_name": file_name, "height": size[0], "width": size[1]}
        write_id_tiff(path, bands, size, mpp)
        return Written(_entry(image, annotation, source), [path])

    def discard(self, written: Written) -> None:
        """Remove the files of a result."""
        for path in written.paths:
            with suppress(OSError, RefineError):  # if the disk rejects this too, the file was never written
                path.unlink()

    def are_complete(self, entry: Entry, image: ImageFile) -> bool:
        """Return whether the files of a result are complete, of the same run, and those of the image as it is now.

        An image that does not exist any more counts as unchanged.
        """
        path = self.out / "panoptic" / entry["annotation"]["file_name"]
        infos = entry["annotation"]["segments_info"]
        names = [name for saver in self.savers for name in saver.paths(image.name, infos)]
        try:
            if path.suffix == ".tif":  # of a large image, which has no other files
                names = []
            elif isinstance(path, Path):  # an object store holds no incomplete files
                read_container(path, (entry["image"]["height"], entry["image"]["width"]))
            since = modified(path)
            if any(modified(self.out / name) < since for name in names):  # they are written after the map
                return False
            now = stamp(image.path)
            return now is None or now == entry.get("source")
        except (RefineError, OSError):
            return False


def _entry(image: dict[str, Any], annotation: dict[str, Any], source: Stamp | None) -> Entry:
    """Return the entry of a result, with the stamp of its image if it is known."""
    entry = {"image": image, "annotation": annotation}
    return entry if source is None else entry | {"source": source}


def png_name(file_name: str) -> str:
    """Return the name of an image's PNG relative to its folder."""
    return PurePath(file_name).with_suffix(".png").as_posix()


def remove(path: Location) -> None:
    """Remove a file if it exists.

    Raises:
        WriteError: the file cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise write_error(str(path), error) from error


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
