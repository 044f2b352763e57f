"""Label images (TIFF): the object of every pixel, and its class, as napari, ImageJ and CellProfiler read them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import numpy as np

from refine.formats.results.saver import ImageResult


def encode(item: ImageResult) -> Iterator[bytes]:
    """Yield two TIFF files: the segment id of every thing's pixels, else 0; and the class of every pixel.

    Ids have 16 bits, or 32 if one exceeds 65,535. Classes count from 1 in the order of `categories` of the COCO
    JSON, 0 is void; the description of the file maps them to names.
    """
    result = item.result
    segments, largest = result.segments, int(item.ids.max(initial=0))
    objects, classes = np.zeros((2, largest + 1), np.uint32)
    for segment in segments:
        objects[segment.id] = segment.id if segment.isthing else 0
        classes[segment.id] = 1 + result.categories.index(segment.category_id)
    yield _tiff(objects.astype(_smallest(objects.max(), (np.uint16, np.uint32)))[item.ids], item.resolution)
    kind = _smallest(len(result.categories), (np.uint8, np.uint16, np.uint32))
    names = {str(n): category.name for n, category in enumerate(result.categories, 1)}
    yield _tiff(classes.astype(kind)[item.ids], item.resolution, json.dumps({"classes": names}))


def _smallest(largest: int, kinds: tuple[type[np.unsignedinteger], ...]) -> type[np.unsignedinteger]:
    return next(kind for kind in kinds if largest <= np.iinfo(kind).max)


def _tiff(values: np.ndarray, mpp: float | None, description: str | None = None) -> bytes:
    from tifffile import RESUNIT, imwrite  # imported late: takes half a second

    content = io.BytesIO()
    scale = None if mpp is None else (1e4 / mpp, 1e4 / mpp)  # pixels per centimetre
    unit = RESUNIT.NONE if mpp is None else RESUNIT.CENTIMETER
    imwrite(
        content,
        values,
        compression="zlib",
        photometric="minisblack",
        description=description,
        metadata=None,
        resolution=scale,
        resolutionunit=unit,
    )
    return content.getvalue()
