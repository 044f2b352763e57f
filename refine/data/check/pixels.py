"""Checks that read an image and its segments and compare them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from refine.data.check.entries import TINY, Entry
from refine.data.check.report import Finding, Tally
from refine.data.cityscapes import CATEGORIES, classify, unknown_values
from refine.data.config import AugmentConfig
from refine.data.segments import SegmentMap, match_segments
from refine.errors import RefineError, counted, shown
from refine.formats.id_png import read_gray, read_runs
from refine.formats.images import read_image
from refine.formats.instances_json import InstanceFile
from refine.formats.raw import ImageOptions
from refine.formats.regions import Regions
from refine.formats.runs import Runs
from refine.formats.segments_info import UNSTATED
from refine.structures import VOID

_SMALL = AugmentConfig.min_area


@dataclass
class Frame:
    """Errors, warnings and counts of one image.

    Attributes:
        errors, warnings: findings.
        tally: counts.
        ranges: file and range of values, if that had to be estimated.
    """

    errors: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    ranges: list[str] = field(default_factory=list)

    def error(self, kind: str, file: Path, message: str) -> None:
        self.errors.append(Finding(kind, str(file), message))

    def warn(self, kind: str, file: Path, message: str) -> None:
        self.warnings.append(Finding(kind, str(file), message))

    def note_range(self, message: str) -> None:
        """Record the note of `read_image` on a range, without its advice on `predict`."""
        self.ranges.append(message.partition("; ")[0])

    def failed(self, kind: str, file: Path, error: RefineError) -> None:
        """Record an error raised by a reader, without the file name that its message begins with."""
        self.error(kind, file, str(error).removeprefix(f"{file}: "))


@dataclass
class ReferenceMasks:
    """Instance masks to compare segments with.

    Attributes:
        file: masks of all images.
        index: image id -> index of the image in `file`.
        labels: category id -> contiguous class.
    """

    file: InstanceFile
    index: Mapping[int | str, int]
    labels: Mapping[int, int]


@dataclass
class Context:
    """Properties of the data set that the check of every image needs.

    Attributes:
        isthing: category id -> whether it is a thing.
        target: category id -> category id after a remap; None or "stuff" if it is not counted.
        instances: instance masks to compare with, or None.
        options: page, channel, range of values and EXIF rotation of the images, see `read_image`.
    """

    isthing: Mapping[int, bool]
    target: Mapping[int, int | str | None]
    instances: ReferenceMasks | None = None
    options: ImageOptions | None = None


def check_frame(entry: Entry, context: Context) -> Frame:
    """Read image and id-PNG of an entry and compare them with the JSON."""
    frame = Frame()
    runs = None
    try:
        runs = read_runs(entry.png)
    except RefineError as error:
        frame.failed("PNG", entry.png, error)
    if runs is not None and entry.size is not None and runs.shape != entry.size:
        frame.error(
            "PNG",
            entry.png,
            f"expected {_pixels(entry.size)} as in the JSON for image {entry.image_id}, got {_pixels(runs.shape)}; "
            f"correct `height` and `width`, or the PNG",
        )
    if entry.image is not None:
        _check_image(frame, entry.image, entry.size if runs is None else runs.shape, context.options)
    if runs is not None:
        regions = Regions.of(runs)
        _compare(frame, entry, regions, context)
        if context.instances is not None and runs.shape == entry.size:
            _compare_instances(frame, entry, regions, context.isthing, context.instances)
    return frame


def check_cityscapes_frame(image: Path, ids_file: Path) -> Frame:
    """Read image and instanceIds file of a frame and compare them."""
    frame = Frame()
    values = None
    try:
        values = read_gray(ids_file)
    except RefineError as error:
        frame.failed("PNG", ids_file, error)
    _check_image(frame, image, None if values is None else (values.shape[0], values.shape[1]))
    if values is None:
        return frame
    regions = Regions.of(Runs.from_map(values))
    unknown = unknown_values(regions.values)
    for value, area in zip(regions.values.tolist(), regions.area.tolist(), strict=True):
        if value in unknown:
            frame.error("PNG", ids_file, f"value {value} ({area} pixels) is not a Cityscapes label; copy it again")
    known = ~np.isin(regions.values, unknown)
    index, crowd = classify(regions.values[known])
    kept, area = index != VOID, regions.area[known]
    category = [CATEGORIES[k].id for k in index[kept].tolist()]
    _count(frame, ids_file, regions, list(zip(category, crowd[kept].tolist(), area[kept].tolist(), strict=True)))
    return frame


def _check_image(
    frame: Frame,
    path: Path,
    size: tuple[int, int] | None,
    options: ImageOptions | None = None,
) -> None:
    try:
        image = read_image(path, size, options, notify=frame.note_range)
    except RefineError as error:
        frame.failed("image file", path, error)
        return
    found = (image.shape[1], image.shape[2])
    if size is not None and found != size:
        message = f"expected {_pixels(size)} as in its segments, got {_pixels(found)}; make them equal"
        frame.error("image file", path, message)
    elif size is None and min(found) < TINY:
        frame.warn("image file", path, f"has only {_pixels(found)}")


def _compare(frame: Frame, entry: Entry, regions: Regions, context: Context) -> None:
    """Compare the ids of the PNG with the entries of the JSON."""
    png, image = entry.png, f"image {entry.image_id}"
    found = []
    for value, area, box in zip(
        regions.values.tolist(), regions.area.tolist(), regions.boxes.tolist(), strict=True
    ):
        info = entry.segments.get(value)
        if info is None:
            if value and value not in entry.dubious:
                frame.error(
                    "segment",
                    png,
                    f"id {value} ({area} pixels) is not in segments_info of {image}; add it, or paint it 0",
                )
            continue
        category = context.target[info["category_id"]]
        if isinstance(category, int):
            found.append((category, bool(info.get("iscrowd", 0)), area))
        name = f"{image}: segment {value}"
        _compare_segment(frame, png, name, info.get("bbox"), entry.areas[value], area, box)
        if context.isthing[info["category_id"]] and area < _SMALL:
            frame.warn(
                "segment", png, f"{image}: segment {value}: thing of {counted(area, 'pixel')}, dropped in training"
            )
    for value in entry.segments.keys() - set(regions.values.tolist()):
        frame.error("segment", png, f"{image}: segment {value} of segments_info has no pixel; drop it")
    _count(frame, png, regions, found)


def _compare_segment(
    frame: Frame, png: Path, name: str, given: Any, stated: int, area: int, box: list[int]
) -> None:
    """Compare area and box with those of the JSON, if stated. Other box conventions differ by one pixel."""
    if stated not in (UNSTATED, area):
        frame.error("segment", png, f"{name}: area is {stated} in the JSON, {area} in the PNG; correct it")
    if given is None or given == box:
        return
    numbers = isinstance(given, list) and len(given) == 4 and all(isinstance(v, int | float) for v in given)
    message = f"{name}: bbox is {shown(given)} in the JSON, {box} in the PNG"
    if numbers and max(abs(a - b) for a, b in zip(given, box, strict=True)) <= 1:
        frame.warn("segment", png, message)
    else:
        frame.error("segment", png, f"{message}; correct it")


def _count(frame: Frame, png: Path, regions: Regions, found: list[tuple[int, bool, int]]) -> None:
    frame.tally.add(int(regions.area.sum()), found)
    if not found:
        frame.warn("PNG", png, "no pixel has a label")


def _compare_instances(
    frame: Frame,
    entry: Entry,
    regions: Regions,
    isthing: Mapping[int, bool],
    instances: ReferenceMasks,
) -> None:
    """Warn of thing segments without an instance: a detector that finds them would be penalised."""
    infos = [entry.segments.get(value) for value in regions.values.tolist()]
    segments = SegmentMap(
        torch.from_numpy(regions.runs.spread(regions.index.astype(np.int32))),
        torch.tensor([VOID if info is None else instances.labels[info["category_id"]] for info in infos]),
        torch.tensor([info is not None and bool(info.get("iscrowd", 0)) for info in infos]),
    )
    masks = instances.file.read(instances.index[entry.image_id])
    match = set(match_segments(segments, *masks).tolist())
    unmatched = [
        value
        for k, (value, info) in enumerate(zip(regions.values.tolist(), infos, strict=True))
        if info and isthing[info["category_id"]] and k not in match
    ]
    if unmatched:
        things = ", ".join(map(str, unmatched))
        frame.warn("instance", instances.file.path, f"image {entry.image_id}: no instance for segments {things}")


def _pixels(size: tuple[int, ...]) -> str:
    return f"{size[1]} × {size[0]} pixels"
