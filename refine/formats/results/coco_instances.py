"""COCO instances with run lengths: a list of results, and the layout of a data set."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from refine.formats.counts import coco_codes
from refine.formats.results.joining import json_list
from refine.formats.results.saver import ImageResult, Part

if TYPE_CHECKING:
    from refine.structures import Categories


def encode(item: ImageResult) -> Iterator[bytes]:
    """Yield the results of one image, without image ids: a list of things."""
    codes = coco_codes(item.ids, [segment.id for segment in item.things])
    results = [
        {
            "category_id": segment.category_id,
            "segmentation": code,
            "bbox": list(segment.bbox),
            "score": segment.score,
            "area": segment.area,
        }
        for segment, code in zip(item.things, codes, strict=True)
    ]
    yield json.dumps(results, allow_nan=False).encode()


def join_results(parts: Iterable[Part], categories: Categories) -> Iterator[bytes]:
    """Yield a list of results, as test servers and `COCO.loadRes` of pycocotools read.

    With a box, `loadRes` would take the box's area for the mask's.
    """
    fields = ("category_id", "segmentation", "score")
    yield from json_list(
        {"image_id": image["id"]} | {field: entry[field] for field in fields}
        for image, entries in parts
        for entry in entries
    )


def join_dataset(parts: Iterable[Part], categories: Categories) -> Iterator[bytes]:
    """Yield a data set, as FiftyOne's `COCODetectionDataset` and `COCO` of pycocotools read."""
    images: list[dict[str, Any]] = []

    def annotations() -> Iterator[dict[str, Any]]:
        number = 0
        for image, entries in parts:
            images.append(image)
            for entry in entries:
                number += 1
                yield {"id": number, "image_id": image["id"], "iscrowd": 0} | entry

    yield b'{"annotations": '
    yield from json_list(annotations())
    listed = [{"id": c.id, "name": c.name, "supercategory": c.supercategory} for c in categories if c.isthing]
    yield b', "images": ' + json.dumps(images).encode()
    yield b', "categories": ' + json.dumps(listed).encode() + b"}"
