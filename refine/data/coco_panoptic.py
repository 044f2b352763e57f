"""Data sets in COCO panoptic format, id-PNGs and a JSON (https://cocodataset.org/#format-data)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from refine.data.remap import read_remap
from refine.data.segments import InstanceMasks, SegmentMap, match_segments
from refine.errors import RefineError
from refine.formats.id_png import read_runs
from refine.formats.images import read_image
from refine.formats.instances_json import InstanceFile
from refine.formats.panoptic_json import PanopticJson
from refine.formats.raw import ImageOptions
from refine.formats.runs import Runs
from refine.formats.segments_info import CLASS, CROWD, ID
from refine.structures import VOID


def check_folders(
    images: Path, segments: Path, png: str, size: tuple[int, int] | None, ids: Sequence[int], where: str
) -> None:
    """Raise RefineError if an id-PNG lies in `images`, and not in `segments`.

    Args:
        images, segments: the folders.
        png: file name of the id-PNG of an image.
        size: its (height, width) in pixels, or None if it is unknown.
        ids: its segment ids.
        where: names of the two options or fields, for the message.
    """

    def fits(folder: Path) -> bool:
        try:
            found = read_runs(folder / png, size).ids
            return bool(found.any() and np.isin(found, [0, *ids]).all())
        except RefineError:  # reported when the image is read
            return False

    if not fits(segments) and fits(images):
        raise RefineError(f"{where}: the folders are swapped, as {images} holds the id-PNGs; exchange them")


@dataclass(frozen=True)
class Record:
    """Entries of one image in the JSON.

    Attributes:
        image_id: image id in the data set.
        image: path of the image.
        segments: path of its id-PNG.
        size: (height, width) in pixels stated by the JSON.
        ids: [S] int32, segment ids in the PNG.
        labels: [S] int64, contiguous class of each segment; VOID if a remap drops the category.
        iscrowd: [S] bool, whether each segment is a crowd.
    """

    image_id: int | str
    image: Path
    segments: Path
    size: tuple[int, int]
    ids: np.ndarray
    labels: np.ndarray
    iscrowd: np.ndarray


class CocoPanoptic:
    """Images with segment maps in COCO panoptic format, with any set of categories.

    The parsed JSON is stored in a few flat arrays: 118,000 images take about 40 MB, shared by all worker
    processes. Images without an annotation are skipped.

    Args:
        images: folder of the images.
        json: panoptic JSON with `images`, `annotations` (with `segments_info`) and `categories`.
        segments: folder of the id-PNGs (id = R + 256 G + 65536 B, 0 = void).
        remap: optional file of category changes or "supercategory", see `refine.data.remap`. Stuff
            segments of the same new class are merged.
        instances: optional COCO instances JSON with the same category ids. Boxes, labels and masks are then
            taken from its masks, which may overlap; the semantic map and `Targets.owner` still come from the
            panoptic map, and instances are matched to segments by `match_segments`. Instances of things that
            the remap turns into stuff are skipped.
        options: page, channel, range of values and EXIF rotation of the images, see `ImageOptions`.

    Raises:
        RefineError: a field of a JSON is missing, a category or image is unknown, or an id is used twice.
    """

    def __init__(
        self,
        images: str | Path,
        json: str | Path,
        segments: str | Path,
        *,
        remap: str | Path | None = None,
        instances: str | Path | None = None,
        options: ImageOptions | None = None,
    ) -> None:
        self._options = options or ImageOptions()
        self.images, self.json, self.segments = Path(images), Path(json), Path(segments)
        content = PanopticJson(json)
        source = self.categories = content.categories
        labels = np.arange(len(source), dtype=np.int32)
        self._merge_stuff = remap is not None
        if remap is not None:
            changes = read_remap(remap, source)
            self.categories = changes.categories
            labels = np.array([changes.label(category.id) for category in source], np.int32)
        self._store(content, labels)
        self._instances: InstanceFile | None = None
        if instances is not None:
            # Instances of things that the remap turns into stuff are skipped.
            objects = {
                category.id: VOID if category.isthing and label >= self.categories.num_things else label
                for category, label in zip(source, labels.tolist(), strict=True)
            }
            annotated = {a.image_id: content.images[a.image_id] for a in content.annotations}
            self._instances = InstanceFile(instances, annotated, source, objects, self.categories.num_things)

    def _store(self, content: PanopticJson, labels: np.ndarray) -> None:
        """Store the needed parts of the JSON; `labels` is the class of each of its categories, [C] int32."""
        annotations = content.annotations
        images = [content.images[annotation.image_id] for annotation in annotations]
        self._image_ids = [annotation.image_id for annotation in annotations]
        self._names = np.array([image.file_name for image in images])
        self._pngs = np.array([annotation.file_name for annotation in annotations])
        self._sizes = np.array([image.size for image in images], np.int32)
        self._first = np.array([0] + [annotation.rows.stop for annotation in annotations])
        self._ids = content.table[:, ID].astype(np.int32)
        self._labels = labels[content.table[:, CLASS]]
        self._crowd = content.table[:, CROWD].astype(bool)
        if self._merge_stuff:
            self._crowd &= self._labels < self.categories.num_things  # a crowd that becomes stuff is stuff

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Return (height, width) of each image in pixels, as stated by the JSON."""
        return [(height, width) for height, width in self._sizes.tolist()]

    def __len__(self) -> int:
        return len(self._names)

    def record(self, index: int) -> Record:
        """Return the entries of an image in the JSON."""
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

    def check_folders(self, where: str) -> None:
        """Raise RefineError if the folders of images and of id-PNGs are swapped; `where` names both."""
        if len(self):
            record = self.record(0)
            png = self._pngs[0]
            check_folders(self.images, self.segments, str(png), record.size, record.ids.tolist(), where)

    def name(self, index: int) -> tuple[int | str, str]:
        """Return (image id, file name with its folders) of an image."""
        return self._image_ids[index], str(self._names[index])

    def __getitem__(self, index: int) -> tuple[Tensor, SegmentMap]:
        """Return the image, Tensor[3, H, W] uint8 RGB, and its segment map.

        An image with EXIF rotation is rotated according to `options.exif`, see `read_image`.

        Raises:
            RefineError: a file is missing or damaged, sizes differ, or ids of PNG and JSON differ.
        """
        record = self.record(index)
        runs = read_runs(record.segments, record.size)
        image = read_image(record.image, record.size, self._options)
        if tuple(image.shape[1:]) != record.size:
            raise RefineError(
                f"{record.image}: expected {_pixels(record.size)} as in {record.segments}, got "
                f"{_pixels(image.shape[1:])}; make them equal"
            )
        segments = self._segment_map(runs, record)
        if self._instances is not None:
            masks, labels, iscrowd = self._instances.read(index)
            match = match_segments(segments, masks, labels, iscrowd)
            segments.instances = InstanceMasks(masks, labels, iscrowd, match)
        return image, segments

    def _segment_map(self, runs: Runs, record: Record) -> SegmentMap:
        index = runs.find(record.ids)
        unknown = runs.ids[(index < 0) & (runs.ids != 0)]
        if unknown.size:
            raise RefineError(
                f"{record.segments}: id {unknown[0]} is not in segments_info of image {record.image_id} "
                f"({self.json}); add it or paint the pixels 0"
            )
        absent = np.setdiff1d(np.arange(len(record.ids)), index)
        if absent.size:
            raise RefineError(
                f"{self.json}: image {record.image_id}: segment {record.ids[absent[0]]} has no pixel in "
                f"{record.segments}; drop it"
            )
        target = np.append(self._merged(record), -1)  # index -1 is void
        return SegmentMap(
            torch.from_numpy(runs.spread(target[index].astype(np.int32))),
            torch.from_numpy(record.labels),
            torch.from_numpy(record.iscrowd),
        )

    def _merged(self, record: Record) -> np.ndarray:
        """Return the segment that each segment is merged into by the remap: [S] int64, -1 = void."""
        target = np.arange(len(record.ids))
        if self._merge_stuff:
            stuff = np.flatnonzero(record.labels >= self.categories.num_things)
            _, first, group = np.unique(record.labels[stuff], return_index=True, return_inverse=True)
            target[stuff] = stuff[first[group]]
            target[record.labels == VOID] = -1
        return target


def _pixels(size: Sequence[int]) -> str:
    return f"{size[1]} × {size[0]} pixels"
