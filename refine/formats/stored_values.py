"""Values of an image as they are stored, before they are scaled to 8 bits and composited over white."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from refine.formats.image_like import ImageLike, temporary_file
from refine.formats.image_list import SLIDES
from refine.formats.images import as_decoded, decode, exif_orientation
from refine.formats.raw import ImageOptions, RawImage


def stored_values(image: ImageLike, options: ImageOptions | None, size: tuple[int, int]) -> np.ndarray | None:
    """Return the stored values of an image without its opacity: [H, W, C], C 1 or 3, upright.

    Args:
        image: image of any type that `to_tensor` accepts.
        options: page and channel to read, and whether as stored; for files.
        size: (height, width) of the image as it was read, which tells whether it was rotated.

    Returns:
        Values; None for slides and arrays of bool, whose 8-bit image has them all.

    Raises:
        RefineError, OSError: the file cannot be read.
    """
    options = options or ImageOptions()
    if isinstance(image, np.ndarray):
        return None if image.dtype == bool else _fitting(np.atleast_3d(image)[..., :3], 1, size)
    if isinstance(image, Tensor):
        tensor = image.detach().cpu()
        array = (tensor.double() if tensor.is_floating_point() else tensor).numpy()  # NumPy has no bfloat16
        return stored_values(array.transpose(1, 2, 0) if array.ndim == 3 else array, options, size)
    if isinstance(image, bytes | bytearray):
        with temporary_file(image) as path:
            return stored_values(path, options, size)
    if isinstance(image, Image.Image):
        found, channel = as_decoded(image), None
    elif Path(image).suffix.lower() in SLIDES:
        return None
    else:
        found, channel = decode(Path(image), options)
    if isinstance(found, RawImage):
        values, orientation = found.channels(str(image), channel), found.orientation
    else:
        values, orientation = _values(found, channel), exif_orientation(found)
    return _fitting(values, 1 if options.exif == "stored" else orientation, size)


def _values(image: Image.Image, channel: int | None) -> np.ndarray:
    """Return the values of an image of at most 8 bits, [H, W, C], where Pillow's are 255 less those of the file."""
    is_grey = image.mode in ("1", "L", "LA")
    values = np.atleast_3d(np.asarray(image.convert("L" if is_grey else "RGBA")))[..., :3]  # see `_select_channel`
    if image.info.get("inverted"):
        values = 255 - values
    return values if channel is None else values[..., channel - 1 : channel]


def _fitting(values: np.ndarray, orientation: int, size: tuple[int, int]) -> np.ndarray | None:
    upright = _turned(values, orientation)
    if upright.shape[:2] == size:
        return upright
    return values if values.shape[:2] == size else None


def _turned(values: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an EXIF orientation, 1-8, to [H, W, C]."""
    if orientation in (2, 4, 5, 7):
        values = values[:, ::-1]
    return np.rot90(values, {3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}.get(orientation, 0))
