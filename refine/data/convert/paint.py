"""Segment map of an image from regions that may overlap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import numpy as np

from refine.data.convert.source import LabelMap, Region, Regions
from refine.errors import RefineError, shown
from refine.formats import regions as map_regions
from refine.formats import rle, runs
from refine.structures import Category

Overlap = Literal["smaller-in-front", "last-in-front", "error"]
OVERLAPS: tuple[str, ...] = get_args(Overlap)
_VOID = -1
_Key = tuple[Category, bool, int | None]
"""Identity of a segment: category, iscrowd, and number of the region, None for stuff."""


@dataclass
class Counts:
    """Counts of a conversion.

    Attributes:
        images: number of images.
        objects: things and crowds of the result.
        empty: regions without a pixel, such as polygons that are thinner than one or outside the image.
        hidden: regions of which others cover every pixel.
        covered: regions of which others cover a part.
        annotated: pixels of all regions, ignored ones included, each counted once per region.
        lost: pixels of regions that others cover.
        gained: unlabelled pixels that became background.
        void: pixels without a label in the result.
        pixels: pixels of all images.
    """

    images: int = 0
    objects: int = 0
    empty: int = 0
    hidden: int = 0
    covered: int = 0
    annotated: int = 0
    lost: int = 0
    gained: int = 0
    void: int = 0
    pixels: int = 0

    def add(self, other: Counts) -> None:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


@dataclass(frozen=True)
class Painter:
    """Settings of a conversion.

    Attributes:
        categories: name -> category; regions of other names are void.
        overlap: which of two overlapping regions of equal depth lies in front. "smaller-in-front": things before
            crowds before stuff, and the smaller of two; "last-in-front": the later in the file; "error": overlaps
            are refused. Stuff regions of one class never overlap each other, they are one segment.
        background: category of unlabelled pixels, or None if they are void.
    """

    categories: Mapping[str, Category]
    overlap: Overlap = "smaller-in-front"
    background: Category | None = None

    def paint(self, annotation: LabelMap | Regions, where: str) -> tuple[np.ndarray, list[dict[str, Any]], Counts]:
        """Return the segment ids, [H, W] int32 with 0 for void, the entries of `segments_info`, and the counts.

        Args:
            annotation: annotation of the image.
            where: file of the annotation, for messages.

        Raises:
            RefineError: regions overlap and `overlap` is "error".
        """
        if isinstance(annotation, LabelMap):
            owner, keys, counts = self._segments_of_values(annotation)
        else:
            owner, keys, counts = self._paint_regions(annotation, where)
        if self.background is not None and (free := owner == 0).any():
            counts.gained = int(np.count_nonzero(free))
            owner[free] = keys.setdefault(_key(self.background, False, 0), len(keys) + 1)
        return self._finish(np.maximum(owner, 0), list(keys), counts)

    def _segments_of_values(self, annotation: LabelMap) -> tuple[np.ndarray, dict[_Key, int], Counts]:
        """Return the map of segments, [H, W] int32 with 0 = unlabelled and -1 = void, of a label map."""
        coded = runs.Runs.from_map(annotation.values)
        values, index = np.unique(coded.ids, return_inverse=True)
        keys: dict[_Key, int] = {}
        segment = np.zeros(len(values), np.int32)
        for k, value in enumerate(values.tolist()):
            if value in annotation.labels:
                segment[k] = self._segment(*annotation.labels[value], value, keys)
        owner = coded.spread(segment[index])
        return owner, keys, Counts(annotated=int(np.count_nonzero(owner)))

    def _segment(self, label: str | None, iscrowd: bool, number: int, keys: dict[_Key, int]) -> int:
        """Return the id of the segment of a region, which is new unless it continues stuff; -1 if it is void."""
        if label is None or label not in self.categories:
            return _VOID
        return keys.setdefault(_key(self.categories[label], iscrowd, number), len(keys) + 1)

    def _paint_regions(self, annotation: Regions, where: str) -> tuple[np.ndarray, dict[_Key, int], Counts]:
        """Paint regions from back to front; return the map of segments as `_segments_of_values` does."""
        regions, (height, width) = annotation.regions, annotation.size
        pixels = [rle.pixels(region.code) for region in regions]
        keys: dict[_Key, int] = {}
        own = [self._segment(region.label, region.iscrowd, n, keys) for n, region in enumerate(regions)]
        front = np.full(width * height, len(regions), np.int32)  # column by column, as run lengths are
        for n in sorted(range(len(regions)), key=lambda n: self._depth(regions[n], n, len(pixels[n]))):
            front[pixels[n]] = n
        owner = np.array([*own, 0], np.int32)[front]
        counts = Counts(empty=sum(not len(each) for each in pixels), annotated=sum(map(len, pixels)))
        for n, each in enumerate(pixels):
            covered = each[owner[each] != own[n]]
            if len(covered) and self.overlap == "error":
                one, other = regions[n], regions[front[covered[0]]]
                raise RefineError(
                    f"{where}: {one.where} ({shown(one.label)}) and {other.where} ({shown(other.label)}) overlap; "
                    f"correct them, or choose another --overlap"
                )
            counts.lost += len(covered)
            counts.hidden += len(covered) == len(each) > 0
            counts.covered += 0 < len(covered) < len(each)
        return owner.reshape(width, height).T.copy(), keys, counts

    def _depth(self, region: Region, position: int, area: int) -> tuple[int, ...]:
        """Return the sort key of a region from back to front."""
        if self.overlap != "smaller-in-front":
            return region.depth, position
        category = None if region.label is None else self.categories.get(region.label)
        is_stuff = category is not None and not category.isthing
        return region.depth, 0 if is_stuff else 1 if region.iscrowd else 2, -area, position

    def _finish(
        self, ids: np.ndarray, keys: list[_Key], counts: Counts
    ) -> tuple[np.ndarray, list[dict[str, Any]], Counts]:
        regions = map_regions.Regions.of(runs.Runs.from_map(np.ascontiguousarray(ids)))
        infos = []
        for value, area, box in zip(
            regions.values.tolist(), regions.area.tolist(), regions.boxes.tolist(), strict=True
        ):
            if not value:
                counts.void = area
                continue
            category, iscrowd, _ = keys[value - 1]
            infos.append(
                {"id": value, "category_id": category.id, "iscrowd": int(iscrowd), "area": area, "bbox": box}
            )
            counts.objects += category.isthing
        counts.images, counts.pixels = 1, ids.size
        return ids, infos, counts


def _key(category: Category, iscrowd: bool, number: int) -> _Key:
    return (category, iscrowd, number) if category.isthing else (category, False, None)
