"""COCO panoptic format: id-PNGs and a JSON (https://cocodataset.org/#format-data)."""

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
from refine.formats.images import Exif, read_image
from refine.formats.instances_json import InstanceFile
from refine.formats.panoptic_json import PanopticJson
from refine.formats.runs import Runs
from refine.formats.segments_info import CLASS, CROWD, ID
from refine.structures import VOID


@dataclass(frozen=True)
class Record:
    """One image of the data set.

    Attributes:
        image_id: the data set's.
        image: file of the image.
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
    """Images with their segment maps, of any set of categories.

    The parsed JSON is kept as a few flat arrays: 118,000 images take some 40 MB, which worker processes
    share. Images without an annotation are left out.

    Args:
        images: folder of the images.
        json: panoptic JSON: `images`, `annotations` with `segments_info`, `categories`.
        segments: folder of the id-PNGs (id = R + 256 G + 65536 B, 0 = void).
        remap: optional file of category changes or "supercategory", see `refine.data.remap`. Stuff
            segments that get the same class become one.
        instances: optional COCO instances JSON with the same category ids. Its masks, which may overlap,
            then give boxes, labels and masks; the semantic map and `Targets.owner` stay panoptic, and
            instances are matched to segments by `match_segments`. Of things that the remap makes stuff, none
            is read.
        exif: how images with an EXIF turn were annotated, see `read_image`.

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
        exif: Exif | None = None,
    ) -> None:
        self._exif = exif
        self.images, self.json, self.segments = Path(images), Path(json), Path(segments)
        content = PanopticJson(json)
        source = self.categories = content.categories
        labels = np.arange(len(source), dtype=np.int32)
        self._merge_stuff = remap is not None
        if remap is not None:
            changes = read_remap(remap, source)
            self.categories = changes.categories
            labels = np.array([changes.label(category.id) for category in source], np.int32)
        self._keep(content, labels)
        self._instances: InstanceFile | None = None
        if instances is not None:
            # Objects of a class that the remap makes stuff are objects no more.
            objects = {
                category.id: VOID if category.isthing and label >= self.categories.num_things else label
                for category, label in zip(source, labels.tolist(), strict=True)
            }
            annotated = {a.image_id: content.images[a.image_id] for a in content.annotations}
            self._instances = InstanceFile(instances, annotated, source, objects, self.categories.num_things)

    def _keep(self, content: PanopticJson, labels: np.ndarray) -> None:
        """Keep what is needed of the JSON; `labels` gives the class of each of its categories, [C] int32."""
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
        """(height, width) of each image, from the JSON alone."""
        return [(height, width) for height, width in self._sizes.tolist()]

    def __len__(self) -> int:
        return len(self._names)

    def record(self, index: int) -> Record:
        """Return what the JSON says of an image."""
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
        """Return (image id, file name with its folders) of an image."""
        return self._image_ids[index], str(self._names[index])

    def __getitem__(self, index: int) -> tuple[Tensor, SegmentMap]:
        """Return the image, Tensor[3, H, W] uint8 RGB, and its segment map.

        An image with an EXIF turn is turned as `exif` says, see `read_image`.

        Raises:
            RefineError: a file is missing or damaged, sizes differ, or ids of PNG and JSON differ.
        """
        record = self.record(index)
        runs = read_runs(record.segments, record.size)
        image = read_image(record.image, record.size, exif=self._exif)
        if tuple(image.shape[1:]) != record.size:
            raise RefineError(
                f"{record.image}: {_pixels(image.shape[1:])}, but {record.segments} has "
                f"{_pixels(record.size)}; make them equal"
            )
        segments = self._segment_map(runs, record)
        if self._instances is not None:
            masks, labels, iscrowd = self._instances.read(index)
            match = match_segments(segments, masks, labels, iscrowd)
            segments.instances = InstanceMasks(masks, labels, iscrowd, match)
        return image, segments

    def _segment_map(self, runs: Runs, record: Record) -> SegmentMap:
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


def _pixels(size: Sequence[int]) -> str:
    return f"{size[1]} × {size[0]} pixels"
