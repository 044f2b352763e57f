"""Writer of a converted data set: OUT/images/, OUT/segments/ and OUT/panoptic.json."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import Any

from refine.data.convert.paint import Counts, Painter
from refine.data.convert.source import Sample
from refine.errors import RefineError
from refine.files import name_problem, read_bytes, write_bytes, write_error, write_json
from refine.folders import check_empty
from refine.formats.id_png import write_png
from refine.formats.image_size import image_size
from refine.formats.journal import JOURNAL, Journal
from refine.storage import Stamp, stamp
from refine.structures import Categories


class DatasetWriter:
    """Writer of a data set in COCO panoptic format, one image after the other.

    The JSON is written last. Until then OUT/unfinished.jsonl lists the finished images, so that a stopped
    conversion can be resumed. Images whose files have changed since then are converted again.

    Args:
        out: folder of the result; it must be empty or missing, unless `resume`.
        categories: categories of the result.
        painter: converts annotations to segment maps.
        info: settings of the conversion, written to `info` of the JSON.
        copy: whether to copy images; otherwise OUT/images holds symbolic links to them.
        resume: whether to keep the finished images of an earlier conversion with the same settings.

    Raises:
        RefineError: the folder holds something else, or the earlier conversion had other settings.
    """

    def __init__(
        self,
        out: str | Path,
        categories: Categories,
        painter: Painter,
        info: dict[str, Any],
        *,
        copy: bool = False,
        resume: bool = False,
    ) -> None:
        self.out = Path(out)
        self._categories, self._painter, self._info, self._copy = categories, painter, info, copy
        if resume and not (self.out / JOURNAL).is_file():
            raise RefineError(f"{self.out}: holds no unfinished conversion; leave out --resume")
        if not resume:
            check_empty(self.out, "choose another one, or use --resume")
        settings = info | {"categories": categories.to_json(), "copy": copy}
        self._journal = Journal(self.out / JOURNAL, settings, keep=resume)
        self._done = {entry["image"]["file_name"]: entry for _, entry in self._journal.entries()}

    def write(self, samples: Iterable[Sample], progress: Callable[[int, int], None] | None = None) -> Counts:
        """Convert all images and write the JSON.

        Args:
            samples: images with their annotations.
            progress: called with the number of converted images and of all images.

        Raises:
            RefineError: an annotation or image is invalid, or two images would get the same name or id.
            WriteError: a file cannot be written.
        """
        samples = list(samples)
        ids = [sample.id for sample in samples]
        numbered = None in ids or len(set(ids)) < len(ids)
        total, entries = Counts(), []
        try:
            self._check_names(samples)
            for n, sample in enumerate(samples, 1):
                entry, stamps = self._done.get(sample.name), _stamps(sample)
                if entry is None or entry.get("files") != stamps:
                    entry = self._convert(sample) | {"files": stamps}
                    self._journal.append(entry)
                image_id = n if numbered or sample.id is None else sample.id  # others may have come before it since
                entry["image"]["id"] = entry["annotation"]["image_id"] = image_id
                entries.append(entry)
                total.add(Counts(**entry["counts"]))
                if progress is not None:
                    progress(n, len(samples))
        except BaseException:
            if entries or self._done:
                self._journal.close()
            else:  # nothing to resume: leave no folder that the next try would have to mention
                self._journal.remove()
                for name in ("segments", "images"):  # with files of the first image
                    shutil.rmtree(self.out / name, ignore_errors=True)
                with suppress(OSError):  # it is a mounted volume
                    self.out.rmdir()
            raise
        content = {
            "info": self._info | {"counts": asdict(total)},
            "images": [entry["image"] for entry in entries],
            "annotations": [entry["annotation"] for entry in entries],
            "categories": self._categories.to_json(),
        }
        write_json(self.out / "panoptic.json", content)
        self._journal.remove()
        return total

    def _check_names(self, samples: Iterable[Sample]) -> None:
        """Raise RefineError if a name is none for a data set, or two images would have the same id-PNG."""
        known: dict[str, Sample] = {}
        for sample in samples:
            if problem := name_problem(sample.name):
                raise RefineError(f"{sample.file}: {problem}")
            png = _png_name(sample.name)
            if png in known:
                raise RefineError(
                    f"{sample.file}: {sample.name} and {known[png].name} would both be converted to {png}; rename "
                    f"one"
                )
            known[png] = sample

    def _convert(self, sample: Sample) -> dict[str, Any]:
        annotation = sample.read()
        ids, infos, counts = self._painter.paint(annotation, str(sample.file))
        height, width = ids.shape
        image = sample.image if isinstance(sample.image, Path) else sample.image()
        where = str(image) if isinstance(image, Path) else f"{sample.file}: image {sample.name}"
        size = image_size(image, where)
        if (height, width) not in size:
            raise RefineError(
                f"{where}: has {size.shown[1]} × {size.shown[0]} pixels, but its annotation in {sample.file} has "
                f"{width} × {height}; give the image that was annotated"
            )
        png = _png_name(sample.name)
        write_png(self.out / "segments" / png, ids)
        self._place(image, self.out / "images" / sample.name)
        return {  # `write` sets the ids
            "image": {"id": None, "file_name": sample.name, "height": height, "width": width},
            "annotation": {"image_id": None, "file_name": png, "segments_info": infos},
            "counts": asdict(counts),
        }

    def _place(self, image: Path | bytes, target: Path) -> None:
        """Copy an image into the data set, or link it."""
        if isinstance(image, bytes):
            write_bytes(target, image)
        elif self._copy:
            write_bytes(target, read_bytes(image))
        else:
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.unlink(missing_ok=True)  # of a conversion that stopped before the image was listed
                os.symlink(image.resolve(), target)
            except NotImplementedError as error:
                raise RefineError(f"{target}: this system has no symbolic links; use --copy") from error
            except OSError as error:
                raise write_error(target, error) from error


def _png_name(name: str) -> str:
    return PurePath(name).with_suffix(".png").as_posix()


def _stamps(sample: Sample) -> list[Stamp]:
    """Return the stamps of a sample's files, as far as they exist."""
    files = [sample.file, *sorted(sample.file.iterdir())] if sample.file.is_dir() else [sample.file]
    files += sample.others
    if isinstance(sample.image, Path):
        files.append(sample.image)
    return [found for found in map(stamp, files) if found is not None]
