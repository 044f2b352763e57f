"""Size of an image file from its header, without decoding pixels."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import ExifTags, Image, UnidentifiedImageError
from tifffile import TiffFile

from refine.errors import RefineError
from refine.files import MAX_PIXELS
from refine.formats.containers import TIFF_MAGIC, pillow_formats, read_head
from refine.formats.panoptic_json import valid_size

_TRANSPOSED = range(5, 9)
"""EXIF orientations that exchange width and height."""


class ImageSize(NamedTuple):
    """Both sizes, (height, width) in pixels, that an annotation of an image may refer to.

    Attributes:
        stored: as in the file.
        shown: after the rotation that the EXIF tag asks for, as viewers show the image.
    """

    stored: tuple[int, int]
    shown: tuple[int, int]


def image_size(image: Path | bytes, name: str) -> ImageSize:
    """Read the size of an image.

    Args:
        image: path or content of the file.
        name: name of the image for messages.

    Raises:
        RefineError: the file is missing, damaged, too large, or in none of the formats that `read_image` reads.
    """
    try:
        head = image[:32] if isinstance(image, bytes) else read_head(image)
        with BytesIO(image) if isinstance(image, bytes) else image.open("rb") as file:
            if head.startswith(TIFF_MAGIC):
                with TiffFile(file, _multifile=False) as tiff:
                    page = tiff.pages.first
                    height, width, tag = page.imagelength, page.imagewidth, page.tags.get("Orientation")
                    orientation = 1 if tag is None else tag.value
            else:
                with Image.open(file, formats=pillow_formats(Path(name), head)) as opened:
                    (width, height), orientation = opened.size, opened.getexif().get(ExifTags.Base.Orientation, 1)
    except RefineError:
        raise
    except UnidentifiedImageError as error:
        raise RefineError(f"{name}: is not a supported image; convert it to PNG, JPEG or TIFF") from error
    except Image.DecompressionBombError as error:
        raise RefineError(f"{name}: has more than {MAX_PIXELS:,} pixels; tile it") from error
    except OSError as error:
        raise RefineError(f"{name}: cannot be read ({error.strerror or error}); check the path") from error
    except Exception as error:  # tifffile and Pillow raise any kind of exception if a header is damaged
        raise RefineError(f"{name}: is damaged ({error}); copy or export it again") from error
    stored = (int(height), int(width))
    if valid_size(*stored) is None:
        raise RefineError(f"{name}: has more than {MAX_PIXELS:,} pixels; tile it")
    return ImageSize(stored, stored[::-1] if orientation in _TRANSPOSED else stored)
