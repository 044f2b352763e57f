"""Label Studio: tasks with predictions of brush masks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from refine.formats.counts import counts_by_id
from refine.formats.results.joining import json_list
from refine.formats.results.saver import ImageResult, Part

if TYPE_CHECKING:
    from refine.structures import Categories

LENGTH_BITS = (3, 4, 8, 16)
"""Bits of a run's length that an encoded run can choose between."""


def encode(item: ImageResult) -> Iterator[bytes]:
    """Yield one task. Its image is that of a local storage whose folder is the one that the images were read from.

    The labelling interface needs `<Image name="image" value="$image"/>` and `<BrushLabels name="label"
    toName="image">` with the names of the classes.
    """
    height, width = item.ids.shape
    counts = counts_by_id(item.ids)
    regions: list[dict[str, Any]] = []
    for segment in item.result.segments:
        region = {
            "id": str(segment.id),
            "type": "brushlabels",
            "from_name": "label",
            "to_name": "image",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {
                "format": "rle",
                "rle": list(_packed(counts[segment.id])),
                "brushlabels": [item.result.name(segment)],
            },
        }
        regions.append(region if segment.score is None else region | {"score": segment.score})
    task = {
        "data": {"image": f"/data/local-files/?d={quote(item.file_name)}"},
        "predictions": [{"model_version": item.model, "result": regions}],
    }
    yield json.dumps(task, allow_nan=False).encode()


def join(parts: Iterable[Part], categories: Categories) -> Iterator[bytes]:
    """Yield the list of all tasks."""
    yield from json_list(task for _, task in parts)


def _packed(counts: np.ndarray) -> bytes:
    """Pack run lengths as `@thi.ng/rle-pack` does, which Label Studio's brush uses.

    Four equal bytes per pixel (RGBA), 0 or 255. The header has the number of bytes (32 bits), their width less 1
    (5 bits) and the four numbers of `LENGTH_BITS` less 1 (4 bits each). A run is a 1, the index of its number of
    length bits (2 bits), its length less 1, and its value (8 bits).

    Args:
        counts: [R] int64, pixels outside and inside by turns, as in `run_counts`.
    """
    bits = [f"{4 * counts.sum():032b}{7:05b}", *(f"{size - 1:04b}" for size in LENGTH_BITS)]
    for n, count in enumerate((4 * counts).tolist()):
        while count > 0:
            length = min(count, 1 << LENGTH_BITS[-1])
            choice = next(k for k, size in enumerate(LENGTH_BITS) if length <= 1 << size)
            bits.append(f"1{choice:02b}{length - 1:0{LENGTH_BITS[choice]}b}{255 * (n % 2):08b}")
            count -= length
    text = "".join(bits)
    return int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8))
