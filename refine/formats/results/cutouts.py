"""Cutouts: one PNG per thing, transparent outside it."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

from refine.formats.results.saver import ImageResult


def encode(item: ImageResult) -> Iterator[bytes]:
    """Yield an RGBA PNG of each thing's box."""
    for segment in item.things:
        x, y, width, height = segment.bbox
        alpha = item.crop(segment)[..., None].astype(np.uint8) * 255
        content = io.BytesIO()
        pixels = np.concatenate([item.pixels[y : y + height, x : x + width], alpha], 2)
        Image.fromarray(pixels).save(content, "PNG")
        yield content.getvalue()
