"""Validation of a whole data set that reports all errors, where readers stop at the first."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

from refine.cores import available_cores
from refine.data.check.entries import entries, warnings
from refine.data.check.pixels import Context, Frame, ReferenceMasks, check_cityscapes_frame, check_frame
from refine.data.check.report import ClassRow, Finding, Report
from refine.data.cityscapes import CATEGORIES, list_frames, unannotated
from refine.data.coco_panoptic import check_folders
from refine.data.remap import Remap, read_remap
from refine.errors import RefineError
from refine.formats.image_list import SUFFIXES
from refine.formats.instances_json import InstanceFile
from refine.formats.panoptic_json import PanopticJson
from refine.formats.raw import ImageOptions
from refine.structures import Categories, Category

T = TypeVar("T")
Progress = Callable[[int, int], None]
"""Called with the number of checked images and of all images."""


def check_dataset(
    images: str | Path,
    json: str | Path,
    segments: str | Path,
    remap: str | Path | None = None,
    instances: str | Path | None = None,
    *,
    options: ImageOptions | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Check every entry, image and id-PNG of a data set in COCO panoptic format.

    Apart from the content of the JSON, memory holds only a few images per thread.

    Args:
        images, json, segments, remap, instances, options: as in `CocoPanoptic`.
        threads: number of threads that read images; if None, one per core, at most 8.
        progress: called after every few images.

    Raises:
        RefineError: the JSON cannot be read or lacks one of the three lists, or the folders are swapped.
    """
    report = Report(str(json))

    def note(kind: str, message: str) -> None:
        report.errors.append(Finding(kind, str(json), message))

    content = PanopticJson(json, on_error=note)
    report.warnings += [Finding(kind, str(json), message) for kind, message in warnings(content)]
    isthing = {category.id: category.isthing for category in content.categories}
    image_folder, pngs = Path(images), Path(segments)
    found = entries(content, image_folder, pngs)
    if found:
        first, png = found[0], content.annotations[0].file_name
        check_folders(image_folder, pngs, png, first.size, list(first.segments), "--images, --segments")
    names = (image.file_name for image in content.images.values())
    _unlisted(report, image_folder, (image_folder / name for name in names if name is not None), SUFFIXES)
    _unlisted(report, pngs, (entry.png for entry in found), {".png"})
    context = Context(isthing, {number: number for number in isthing}, options=options)
    categories = content.categories
    if remap is not None and (changes := _open_remap(report, remap, categories)) is not None:
        context.target, categories = changes.target, changes.categories
    if instances is not None:
        context.instances = _open_instances(report, instances, content)
    _check_all(report, lambda entry: check_frame(entry, context), found, threads, progress)
    _count_classes(report, categories)
    return report


def check_cityscapes(
    root: str | Path, split: str, *, threads: int | None = None, progress: Progress | None = None
) -> Report:
    """Check one split of Cityscapes in its raw layout; arguments as in `Cityscapes` and `check_dataset`.

    Raises:
        RefineError: there is no annotated frame.
    """
    frames = list_frames(root, split)
    report = Report(str(Path(root) / "gtFine" / split))
    for path in unannotated(root, split):
        report.warnings.append(Finding("image file", str(path), "has no instanceIds file and is skipped"))
    _check_all(report, lambda frame: check_cityscapes_frame(*frame), frames, threads, progress)
    _count_classes(report, CATEGORIES)
    return report


def _open_remap(report: Report, path: str | Path, source: Categories) -> Remap | None:
    try:
        return read_remap(path, source)
    except RefineError as error:
        report.errors.append(Finding("remap", str(path), str(error).removeprefix(f"{path}: ")))
        return None


def _open_instances(report: Report, path: str | Path, content: PanopticJson) -> ReferenceMasks | None:
    def note(kind: str, message: str) -> None:
        report.errors.append(Finding(kind, str(path), message))

    images = {a.image_id: content.images[a.image_id] for a in content.annotations}
    labels = {category.id: n for n, category in enumerate(content.categories)}
    try:
        file = InstanceFile(path, images, content.categories, labels, content.categories.num_things, note)
    except RefineError as error:
        note("instance", str(error).removeprefix(f"{path}: "))
        return None
    return ReferenceMasks(file, {image_id: n for n, image_id in enumerate(images)}, labels)


def _check_all(
    report: Report,
    check: Callable[[T], Frame],
    items: Sequence[T],
    threads: int | None,
    progress: Progress | None,
) -> None:
    done = 0
    with ThreadPoolExecutor(threads or min(8, available_cores())) as pool:
        for part in _parts(items, 64):
            for frame in pool.map(check, part):
                report.errors += frame.errors
                report.warnings += frame.warnings
                report.tally.merge(frame.tally)
                report.ranges += frame.ranges
            done += len(part)
            if progress is not None:
                progress(done, len(items))


def _parts(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while part := list(islice(iterator, size)):
        yield part


def _unlisted(report: Report, folder: Path, known: Iterable[Path], suffixes: set[str]) -> None:
    """Warn of files that the JSON does not refer to, which were probably forgotten."""
    if not folder.is_dir():
        report.errors.append(Finding("file", str(folder), "no such folder; check the path"))
        return
    listed = {os.path.normpath(path) for path in known}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in suffixes and os.path.normpath(path) not in listed:
            report.warnings.append(Finding("file", str(path), "is not listed in the JSON"))


def _count_classes(report: Report, categories: Iterable[Category]) -> None:
    """Fill the table of classes, and warn of classes that cannot be learned."""
    tally = report.tally
    for c in categories:
        numbers = (count[c.id] for count in (tally.images, tally.segments, tally.crowds, tally.area))
        row = ClassRow(c.id, c.name, c.isthing, *numbers)
        report.classes.append(row)
        if not row.segments:
            what = "instance" if row.isthing else "segment"
            crowds = f", only {row.crowds} crowds" if row.crowds else ""
            report.warnings.append(
                Finding("category", report.source, f"{row.name} (id {row.id}): has no {what}{crowds}")
            )
