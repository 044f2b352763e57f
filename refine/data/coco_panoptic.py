"""COCO panoptic format: id-PNGs and a JSON (https://cocodataset.org/#format-data)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from refine.data.images import read_image
from refine.data.remap import Remap, read_remap
from refine.data.segments import SegmentMap
from refine.errors import RefineError
from refine.files import read_json
from refine.structures import VOID, Categories


@dataclass(frozen=True)
class Record:
    """One picture of the data set.

    Attributes:
        image_id: the data set's.
        image: file of the picture.
        segments: file of its id-PNG.
        size: (height, width) in pixels, as the JSON says.
        ids: [S] int64, segment ids in the PNG.
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

    Args:
        images: folder of the pictures.
        json: panoptic JSON: `images`, `annotations` with `segments_info`, `categories`.
        segments: folder of the id-PNGs (id = R + 256 G + 65536 B, 0 = void).
        remap: optional file of category changes, see `refine.data.remap`.

    Raises:
        RefineError: the JSON lacks a field, names an unknown category or image, or uses an id twice.
    """

    def __init__(
        self, images: str | Path, json: str | Path, segments: str | Path, *, remap: str | Path | None = None
    ) -> None:
        self.json = Path(json)
        content = read_json(self.json)
        for field in ("images", "annotations", "categories"):
            if not isinstance(content, dict) or not isinstance(content.get(field), list):
                raise RefineError(f"{json}: has no list `{field}`; give a COCO panoptic JSON")
        source = Categories.from_json(content["categories"], str(json))
        self._remap: Remap | None = read_remap(remap, source) if remap is not None else None
        self.categories = source if self._remap is None else self._remap.categories
        self._labels = {
            c.id: (source.index(c.id) if self._remap is None else self._remap.label(c.id)) for c in source
        }
        by_id: dict[Any, Mapping[str, Any]] = {}
        for image in content["images"]:
            if image["id"] in by_id:
                raise RefineError(f"{json}: images: id {image['id']} is used twice; make ids unique")
            by_id[image["id"]] = image
        self.records = [
            self._record(annotation, by_id, Path(images), Path(segments)) for annotation in content["annotations"]
        ]
        if not self.records:
            raise RefineError(f"{json}: annotations: the list is empty; annotate at least one picture")

    def _record(
        self,
        annotation: Mapping[str, Any],
        by_id: Mapping[Any, Mapping[str, Any]],
        images: Path,
        segments: Path,
    ) -> Record:
        image_id = annotation["image_id"]
        where = f"{self.json}: annotations of image {image_id}"
        if image_id not in by_id:
            raise RefineError(f"{where}: no such image in `images`; add it or drop the annotation")
        image, infos = by_id[image_id], annotation["segments_info"]
        for info in infos:
            if info["category_id"] not in self._labels:
                raise RefineError(
                    f"{where}: segment {info['id']}: unknown category_id {info['category_id']}; "
                    f"add it to `categories` or correct it"
                )
        ids = np.array([info["id"] for info in infos], dtype=np.int64)
        if len(np.unique(ids)) != len(ids):
            raise RefineError(f"{where}: a segment id is used twice; make ids unique within the image")
        return Record(
            image_id,
            images / image["file_name"],
            segments / annotation["file_name"],
            (int(image["height"]), int(image["width"])),
            ids,
            np.array([self._labels[info["category_id"]] for info in infos], dtype=np.int64),
            np.array([bool(info.get("iscrowd", 0)) for info in infos], dtype=bool),
        )

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each picture, from the JSON alone."""
        return [record.size for record in self.records]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Tensor, SegmentMap]:
        """The picture, Tensor[3, H, W] uint8 RGB, and its segment map.

        Raises:
            RefineError: a file is missing or damaged, sizes differ, or ids of PNG and JSON differ.
        """
        record = self.records[index]
        image = read_image(record.image)
        ids = read_ids(record.segments)
        if ids.shape != tuple(image.shape[1:]):
            raise RefineError(
                f"{record.segments}: {ids.shape[1]} × {ids.shape[0]} pixels, but {record.image} has "
                f"{image.shape[2]} × {image.shape[1]}; make them equal"
            )
        return image, self._segment_map(ids, record)

    def name(self, index: int) -> tuple[int | str, str]:
        """(image id, file name) of a picture."""
        record = self.records[index]
        return record.image_id, record.image.name

    def _segment_map(self, ids: np.ndarray, record: Record) -> SegmentMap:
        order = np.argsort(record.ids)
        known = record.ids[order]
        place = np.searchsorted(known, ids).clip(max=max(len(known) - 1, 0))
        found = known[place] == ids if len(known) else np.zeros(ids.shape, bool)
        unknown = ids[~found & (ids != 0)]
        if unknown.size:
            raise RefineError(
                f"{record.segments}: id {unknown.flat[0]} is not in segments_info of image {record.image_id} "
                f"({self.json}); add it or paint the pixels 0"
            )
        index = np.where(found, order[place] if len(known) else 0, -1)
        absent = np.flatnonzero(np.bincount(index[index >= 0], minlength=len(known)) == 0)
        if absent.size:
            raise RefineError(
                f"{self.json}: image {record.image_id}: segment {record.ids[absent[0]]} has no pixel in "
                f"{record.segments}; drop it"
            )
        dropped = np.append(record.labels == VOID, False)  # by a remap; index -1 is void already
        index = np.where(dropped[index], -1, index)
        return SegmentMap(
            torch.from_numpy(index.astype(np.int32)),
            torch.from_numpy(record.labels),
            torch.from_numpy(record.iscrowd),
        )


def read_ids(path: Path) -> np.ndarray:
    """Segment ids of an id-PNG: [H, W] int32.

    Raises:
        RefineError: missing, damaged, or not an RGB PNG.
    """
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise RefineError(f"{path}: cannot be read ({error.strerror}); check the folder of segments") from error
    bgr = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    if bgr is None:
        raise RefineError(f"{path}: is damaged or no PNG; write it again")
    if bgr.ndim != 3 or bgr.shape[2] < 3 or bgr.dtype != np.uint8:
        raise RefineError(f"{path}: is not an RGB PNG of 8 bits; write id = R + 256 G + 65536 B")
    parts = bgr.astype(np.int32)
    return parts[..., 2] + (parts[..., 1] << 8) + (parts[..., 0] << 16)
