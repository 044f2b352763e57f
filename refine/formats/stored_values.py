"""Values of an image as they are stored, before they are scaled to 8 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from refine.formats.image_like import ImageLike
from refine.formats.image_list import SLIDES
from refine.formats.images import decode
from refine.formats.raw import ImageOptions, RawImage


def stored_values(image: ImageLike, options: ImageOptions | None, size: tuple[int, int]) -> np.ndarray | None:
    """Return the stored values of an image of more than 8 bits: [H, W, C], C 1 or 3, upright.

    Args:
        image: a path or an array; other kinds of images are of 8 bits here.
        options: page and channel to read, and whether as stored.
        size: (height, width) of the image as it was read, which tells whether it was rotated.

    Returns:
        Values, or None if the 8-bit image has them all.

    Raises:
        RefineError, OSError: the file cannot be read.
    """
    if isinstance(image, np.ndarray):
        return _fitting(np.atleast_3d(image)[..., :3], 1, size)
    options = options or ImageOptions()
    if not isinstance(image, str | Path) or Path(image).suffix.lower() in SLIDES:
        return None
    found, channel = decode(Path(image), options)
    if not isinstance(found, RawImage):
        return None
    orientation = 1 if options.exif == "stored" else found.orientation
    return _fitting(found.channels(image, channel), orientation, size)


def _fitting(values: np.ndarray, orientation: int, size: tuple[int, int]) -> np.ndarray | None:
    if values.dtype in (np.uint8, np.bool_):
        return None
    upright = _turned(values, orientation)
    if upright.shape[:2] == size:
        return upright
    return values if values.shape[:2] == size else None


def _turned(values: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an EXIF orientation, 1-8, to [H, W, C]."""
    if orientation in (2, 4, 5, 7):
        values = values[:, ::-1]
    return np.rot90(values, {3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}.get(orientation, 0))
