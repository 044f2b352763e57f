"""COCO panoptic format: id-PNGs and a JSON (https://cocodataset.org/#format-data)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refine.data.remap import read_remap
from refine.data.segments import InstanceMasks, SegmentMap, match_segments
from refine.errors import RefineError
from refine.files import read_json
from refine.formats.id_png import Runs, read_ids
from refine.formats.images import read_image
from refine.formats.instances_json import InstanceFile
from refine.structures import VOID, Categories


@dataclass(frozen=True)
class Record:
    """One picture of the data set.

    Attributes:
        image_id: the data set's.
        image: file of the picture.
        segments: file of its id-PNG.
        size: (height, width) in pixels, as the JSON says.
        ids: [S] int32, segment ids in the PNG.
        labels: [S] int64, contiguous classes; VOID where a remap drops the category.
        iscrowd: [S] bool.
    """

    image_id: int | str
    image: Path
    segments: Path
    size: tuple[int, int]
    ids: np.ndarray
    labels: np.ndarray
    iscrowd: np.ndarray


class CocoPanoptic:
    """Pictures with their segment maps, of any set of categories.

    The parsed JSON is kept as a few flat arrays: 118,000 pictures take some 40 MB, which worker processes
    share. Pictures without an annotation are left out.

    Args:
        images: folder of the pictures.
        json: panoptic JSON: `images`, `annotations` with `segments_info`, `categories`.
        segments: folder of the id-PNGs (id = R + 256 G + 65536 B, 0 = void).
        remap: optional file of category changes or "supercategory", see `refine.data.remap`. Stuff
            segments that get the same class become one.
        instances: optional COCO instances JSON with the same category ids. Its masks, which may overlap,
            then give boxes, labels and masks; the semantic map and `Targets.owner` stay panoptic, and
            instances are matched to segments by `match_segments`. Of things that the remap makes stuff, none
            is read.

    Raises:
        RefineError: a JSON lacks a field, names an unknown category or image, or uses an id twice.
    """

    def __init__(
        self,
        images: str | Path,
        json: str | Path,
        segments: str | Path,
        *,
        remap: str | Path | None = None,
        instances: str | Path | None = None,
    ) -> None:
        self.images, self.json, self.segments = Path(images), Path(json), Path(segments)
        content = read_panoptic_json(json)
        source = Categories.from_json(content["categories"], str(json))
        labels = {category.id: source.index(category.id) for category in source}
        self.categories = source
        self._merge_stuff = remap is not None
        if remap is not None:
            changes = read_remap(remap, source)
            self.categories = changes.categories
            labels = {category.id: changes.label(category.id) for category in source}
        self._parse(content["images"], content["annotations"], labels)
        self._instances: InstanceFile | None = None
        if instances is not None:
            # Objects of a class that the remap makes stuff are objects no more.
            objects = {
                i: VOID if source[source.index(i)].isthing and label >= self.categories.num_things else label
                for i, label in labels.items()
            }
            self._instances = InstanceFile(
                instances, self._image_ids, self.sizes, objects, self.categories.num_things
            )

    def _parse(self, images: Sequence[Mapping], annotations: Sequence[Mapping], labels: Mapping[int, int]) -> None:
        """Check the entries and keep what is needed of them."""
        by_id: dict[Any, tuple[str, int, int]] = {}
        for n, image in enumerate(images):
            where = f"{self.json}: images[{n}]"
            image_id, name, height, width = (
                _field(image, field, kind, where)
                for field, kind in (("id", (int, str)), ("file_name", str), ("height", int), ("width", int))
            )
            if image_id in by_id:
                raise RefineError(f"{where}: id {image_id} is used twice; make ids unique")
            by_id[image_id] = (name, height, width)
        self._image_ids: list[int | str] = []
        names, pngs, sizes, counts, ids, classes, crowd = [], [], [], [], [], [], []
        for n, annotation in enumerate(annotations):
            where = f"{self.json}: annotations[{n}]"
            image_id = _field(annotation, "image_id", (int, str), where)
            if image_id not in by_id:
                raise RefineError(f"{where}: image {image_id} is not in `images`; add it, or drop this")
            infos = _field(annotation, "segments_info", list, where)
            try:
                ids += [info["id"] for info in infos]
                classes += [labels[info["category_id"]] for info in infos]
                crowd += [bool(info.get("iscrowd", 0)) for info in infos]
            except (KeyError, TypeError, AttributeError):
                raise _bad_segment(infos, labels, where) from None
            self._image_ids.append(image_id)
            name, height, width = by_id[image_id]
            names.append(name)
            pngs.append(_field(annotation, "file_name", str, where))
            sizes.append((height, width))
            counts.append(len(infos))
        if not names:
            raise RefineError(f"{self.json}: annotations: the list is empty; annotate at least one picture")
        if len(set(self._image_ids)) < len(names):
            twice = next(i for i in self._image_ids if self._image_ids.count(i) > 1)
            raise RefineError(f"{self.json}: annotations: image {twice} is annotated twice; keep one")
        self._names, self._pngs = np.array(names), np.array(pngs)
        self._sizes = np.array(sizes, np.int32)
        self._first = np.cumsum([0, *counts])
        self._check_ids(ids)
        self._ids = np.array(ids, np.int32)
        self._labels, self._crowd = np.array(classes, np.int16), np.array(crowd, bool)
        if self._merge_stuff:
            self._crowd &= self._labels < self.categories.num_things  # a crowd that becomes stuff is stuff

    def _check_ids(self, ids: list[Any]) -> None:
        """Ids are integers from 1 to 2^24 - 1, each once in its image."""
        if not all(type(i) is int and 0 < i < 1 << 24 for i in ids):
            n = next(n for n, i in enumerate(ids) if type(i) is not int or not 0 < i < 1 << 24)
            problem = f"segment id {ids[n]!r} is not an integer from 1 to 16777215"
        else:
            images = np.repeat(np.arange(len(self._names)), np.diff(self._first))
            keys = images << 24 | np.array(ids, np.int64)
            _, first = np.unique(keys, return_index=True)
            if len(first) == len(ids):
                return
            n = int(np.setdiff1d(np.arange(len(ids)), first)[0])
            problem = f"segment id {ids[n]} is used twice"
        image_id = self._image_ids[int(np.searchsorted(self._first, n, side="right")) - 1]
        raise RefineError(f"{self.json}: annotations of image {image_id}: {problem}; correct it")

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each picture, from the JSON alone."""
        return [(height, width) for height, width in self._sizes.tolist()]

    def __len__(self) -> int:
        return len(self._names)

    def record(self, index: int) -> Record:
        """What the JSON says of a picture."""
        part = slice(self._first[index], self._first[index + 1])
        return Record(
            self._image_ids[index],
            self.images / str(self._names[index]),
            self.segments / str(self._pngs[index]),
            (int(self._sizes[index, 0]), int(self._sizes[index, 1])),
            self._ids[part],
            self._labels[part].astype(np.int64),
            self._crowd[part],
        )

    def name(self, index: int) -> tuple[int | str, str]:
        """(image id, file name) of a picture."""
        return self._image_ids[index], Path(str(self._names[index])).name

    def __getitem__(self, index: int) -> tuple[Tensor, SegmentMap]:
        """The picture, Tensor[3, H, W] uint8 RGB, and its segment map.

        A picture with an EXIF turn is turned if it then has the size of its PNG, and left as stored if it
        has that size so.

        Raises:
            RefineError: a file is missing or damaged, sizes differ, or ids of PNG and JSON differ.
        """
        record = self.record(index)
        ids = read_ids(record.segments)
        if ids.shape != record.size:
            raise RefineError(
                f"{record.segments}: {_pixels(ids.shape)}, but {self.json} says {_pixels(record.size)}; "
                f"correct `height` and `width`, or the PNG"
            )
        image = read_image(record.image, record.size)
        if tuple(image.shape[1:]) != record.size:
            raise RefineError(
                f"{record.image}: {_pixels(image.shape[1:])}, but {record.segments} has "
                f"{_pixels(record.size)}; make them equal"
            )
        segments = self._segment_map(ids, record)
        if self._instances is not None:
            masks, labels, iscrowd = self._instances.read(index)
            match = match_segments(segments, masks, labels, iscrowd)
            segments.instances = InstanceMasks(masks, labels, iscrowd, match)
        return image, segments

    def _segment_map(self, ids: np.ndarray, record: Record) -> SegmentMap:
        runs = Runs.of(ids)
        place = runs.find(record.ids)
        unknown = runs.ids[(place < 0) & (runs.ids != 0)]
        if unknown.size:
            raise RefineError(
                f"{record.segments}: id {unknown[0]} is not in segments_info of image {record.image_id} "
                f"({self.json}); add it or paint the pixels 0"
            )
        absent = np.setdiff1d(np.arange(len(record.ids)), place)
        if absent.size:
            raise RefineError(
                f"{self.json}: image {record.image_id}: segment {record.ids[absent[0]]} has no pixel in "
                f"{record.segments}; drop it"
            )
        target = np.append(self._merged(record), -1)  # of each place; -1 is void already
        return SegmentMap(
            torch.from_numpy(runs.spread(target[place].astype(np.int32))),
            torch.from_numpy(record.labels),
            torch.from_numpy(record.iscrowd),
        )

    def _merged(self, record: Record) -> np.ndarray:
        """Segment that each segment becomes by the remap: [S] int64, -1 = void."""
        target = np.arange(len(record.ids))
        if self._merge_stuff:
            stuff = np.flatnonzero(record.labels >= self.categories.num_things)
            _, first, group = np.unique(record.labels[stuff], return_index=True, return_inverse=True)
            target[stuff] = stuff[first[group]]
            target[record.labels == VOID] = -1
        return target


def read_panoptic_json(
    path: str | Path, fields: Sequence[str] = ("images", "annotations", "categories")
) -> dict[str, Any]:
    """Read a panoptic JSON with these lists, entries unchecked.

    Raises:
        RefineError: not a JSON with these lists.
    """
    content = read_json(path)
    for field in fields:
        if not isinstance(content, dict) or not isinstance(content.get(field), list):
            raise RefineError(f"{path}: has no list `{field}`; give a COCO panoptic JSON")
    return content


def _field(entry: Mapping[str, Any], field: str, kind: type | tuple[type, ...], where: str) -> Any:
    value = entry.get(field) if isinstance(entry, dict) else None
    if not isinstance(value, kind):
        raise RefineError(f"{where}.{field} is {value!r}; give it as COCO panoptic JSON has it")
    return value


def _bad_segment(infos: Sequence[Any], labels: Mapping[int, int], where: str) -> RefineError:
    """What is wrong with the first bad entry of `segments_info`."""
    for k, info in enumerate(infos):
        entry = f"{where}.segments_info[{k}]"
        for field in ("id", "category_id"):
            if not isinstance(info, dict) or not isinstance(info.get(field), int):
                return RefineError(f"{entry}: has no integer `{field}`; give it")
        if info["category_id"] not in labels:
            return RefineError(
                f"{entry}: unknown category_id {info['category_id']}; add it to `categories` or correct it"
            )
    raise AssertionError(f"{where}: no bad segment")


def _pixels(size: Sequence[int]) -> str:
    return f"{size[1]} × {size[0]} pixels"
