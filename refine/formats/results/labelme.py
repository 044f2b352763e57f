"""LabelMe JSON, which labelme opens beside the image."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from refine.formats.results.saver import ImageResult

if TYPE_CHECKING:
    from refine.structures import Segment

VERSION = "5.5.0"
"""Version of labelme whose format this is; shapes of type `mask` exist from 5.3 on."""


def encode(item: ImageResult) -> Iterator[bytes]:
    """Yield one shape of type `mask` per segment: exact, with holes, unlike labelme's polygons."""
    height, width = item.ids.shape
    content = {
        "version": VERSION,
        "flags": {},
        "shapes": [_shape(item, segment) for segment in item.result.segments],
        "imagePath": PurePath(item.file_name).name,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }
    yield json.dumps(content, allow_nan=False).encode()


def _shape(item: ImageResult, segment: Segment) -> dict[str, Any]:
    x, y, width, height = segment.bbox
    png = io.BytesIO()
    Image.fromarray(item.crop(segment).astype(np.uint8)).save(png, "PNG")
    return {
        "label": item.result.name(segment),
        "points": [[x, y], [x + width - 1, y + height - 1]],
        "group_id": segment.id,
        "description": "" if segment.score is None else f"score {segment.score:.4f}",
        "shape_type": "mask",
        "flags": {},
        "mask": base64.b64encode(png.getvalue()).decode(),
    }
