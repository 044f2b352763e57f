"""A panoptic result: one segment id per pixel, and what each segment is."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from refine.structures.categories import Categories


@dataclass(frozen=True)
class Segment:
    """One segment of a panoptic map.

    Attributes:
        id: value of its pixels in `PanopticResult.segment_ids`, 1..2^24-1, unique in the image.
        category_id: the data set's own category id.
        isthing: instance of a thing class, or a region of stuff.
        score: confidence, 0-1; None for stuff from a map without confidences.
        area: number of pixels.
        bbox: (x, y, width, height) in pixels, tight.
        instance: place of its instance among those that were fused; None for stuff and ground truth.
    """

    id: int
    category_id: int
    isthing: bool
    score: float | None
    area: int
    bbox: tuple[int, int, int, int]
    instance: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Entry of `segments_info` in a COCO panoptic JSON (plus `isthing` and `score`)."""
        entry = asdict(self) | {"bbox": list(self.bbox), "iscrowd": 0}
        del entry["instance"]
        if entry["score"] is None:
            del entry["score"]
        return entry


@dataclass
class PanopticResult:
    """Every pixel's segment, and every segment's class.

    Attributes:
        segment_ids: Tensor[H, W] int32, 0 = void/unknown.
        segments: the segments, in the order of their ids; each id occurs in `segment_ids`.
        categories: of the model or data set that `category_id` refers to.
    """

    segment_ids: Tensor
    segments: list[Segment]
    categories: Categories
    _by_id: dict[int, Segment] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._by_id = {s.id: s for s in self.segments}
        if len(self._by_id) != len(self.segments):
            raise ValueError("PanopticResult.segments: an id is used twice")

    def __len__(self) -> int:
        return len(self.segments)

    def segment(self, segment_id: int) -> Segment:
        """The segment with this id; KeyError if there is none."""
        return self._by_id[segment_id]

    def mask(self, segment_id: int) -> Tensor:
        """Tensor[H, W] bool, the pixels of one segment."""
        return self.segment_ids == segment_id

    def name(self, segment: Segment) -> str:
        """The category's name."""
        return self.categories[self.categories.index(segment.category_id)].name

    def summary(self) -> str:
        """How many things and classes of stuff, in words."""
        things = sum(segment.isthing for segment in self.segments)
        return f"things: {things}, classes of stuff: {len(self) - things}"


def id_to_rgb(ids: np.ndarray) -> np.ndarray:
    """COCO's colour code of segment ids: id = R + 256 G + 65536 B.

    Args:
        ids: [H, W] integer, 0..2^24-1.

    Returns:
        [H, W, 3] uint8.
    """
    ids = ids.astype(np.uint32)
    return np.stack([ids & 255, (ids >> 8) & 255, (ids >> 16) & 255], axis=-1).astype(np.uint8)


def rgb_to_id(rgb: np.ndarray) -> np.ndarray:
    """Inverse of `id_to_rgb`: [H, W, 3] uint8 -> [H, W] int32."""
    rgb = rgb.astype(np.int32)
    return rgb[..., 0] + (rgb[..., 1] << 8) + (rgb[..., 2] << 16)
