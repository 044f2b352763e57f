"""TIFF files as they are stored, although Pillow rotates them upright."""

from __future__ import annotations

from PIL import ExifTags, Image

_UNDO = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""What gives the stored pixels back of an image that was rotated upright, by its EXIF orientation."""


def load_stored(image: Image.Image) -> Image.Image:
    """Load an image that is opened but not loaded yet, and return it as it is stored.

    The EXIF data of the result give the orientation, as those of other formats do, which Pillow does not rotate.
    """
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1) if image.format == "TIFF" else 1
    image.load()
    if orientation not in _UNDO:
        return image
    stored = image.transpose(_UNDO[orientation])
    stored.getexif()[ExifTags.Base.Orientation] = orientation
    return stored
