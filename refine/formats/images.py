"""Image files and Pillow images as 8-bit RGB tensors."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from refine.errors import RefineError
from refine.files import MAX_PIXELS
from refine.formats.raw import ImageOptions, RawImage, check_channel, check_page

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that Pillow may open; among its others is PostScript, which it hands to Ghostscript."""
Exif = Literal["shown", "stored"]
"""How images with an EXIF turn were annotated: turned upright, or as stored in the file."""
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of TIFF and BigTIFF."""
BAND = 32
"""Rows converted at a time, so that they stay in the cache."""


def read_image(
    path: str | Path,
    size: tuple[int, int] | None = None,
    options: ImageOptions | None = None,
    *,
    exif: Exif | None = None,
    max_pixels: int = MAX_PIXELS,
    tell: Callable[[str], None] | None = None,
) -> Tensor:
    """Read an image file, turned upright by its EXIF tag.

    Grey, palette and CMYK images become RGB, transparent pixels are laid over white. Values of more than 8 bits
    are scaled as `raw.to_bytes` says. Of a multi-picture JPEG the first picture is read: the others are
    previews and depth maps.

    Args:
        path: a regular file in one of `FORMATS`.
        size: (H, W) of its annotation, or None if there is none and the image is turned upright. Otherwise,
            an image that has this size only as stored is not turned.
        options: page, channel and range of values; the defaults if None.
        exif: how annotated images with an EXIF turn were annotated: "shown" (turned upright) or "stored";
            None decides by `size`.
        max_pixels: limit on height × width, checked before pixels are decoded.
        tell: called with one line if the range of values was estimated.

    Returns:
        Tensor[3, H, W] uint8 RGB.

    Raises:
        RefineError: missing, not a regular file, not an image, cut off, too large, of several pages or channels
            none of which is chosen, or turned so that `size` fits both ways and `exif` is None.
    """
    path = Path(path)
    try:
        with _open(path, options or ImageOptions(), max_pixels, tell) as image:
            return _to_tensor(_as_annotated(path, image, size, exif))
    except FileNotFoundError as error:
        raise RefineError(f"{path}: no such file; check the path") from error
    except UnidentifiedImageError as error:
        raise RefineError(f"{path}: is not an image that can be read; convert it to PNG, JPEG or TIFF") from error
    except Image.DecompressionBombError as error:
        raise RefineError(f"{path}: has more than {max_pixels} pixels; tile it") from error
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise RefineError(f"{path}: cannot be read ({error.strerror}); check the path") from error
        raise RefineError(f"{path}: is damaged or cut off ({error}); copy or export it again") from error


def from_pil(image: Image.Image) -> Tensor:
    """Convert a Pillow image of any mode as `read_image` does: Tensor[3, H, W] uint8 RGB, upright.

    Raises:
        ValueError: values that are not finite.
    """
    return _to_tensor(_upright(_raw(image).to_pil("image") if _is_wide(image) else image))


def _open(path: Path, options: ImageOptions, max_pixels: int, tell: Callable[[str], None] | None) -> Image.Image:
    """Decode one page of a file: at most 8 bits per value, not yet turned or converted to RGB."""
    head = _read_head(path)
    number, channel = None, options.channel
    raw: RawImage | None = None
    if head.startswith(TIFF_MAGIC):
        from refine.formats.tiff import open_page  # half a second

        page, channel = open_page(path, options.page, channel, max_pixels)
        raw, number = (page, None) if isinstance(page, RawImage) else (None, page)
    if raw is None:
        with Image.open(path, formats=FORMATS) as image:
            _check_size(image, max_pixels)
            if number is None:
                frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
                number = check_page(path, options.page, frames, f"{frames} frames")
            if number:
                image.seek(number)
                _check_size(image, max_pixels)
            image.load()
        if image.format == "PNG" and head[24] == 16 and not number:
            raw = _decode_png(path)
        elif _is_wide(image):
            raw = _raw(image)
        else:
            return image if channel is None else _pick_channel(path, image, channel)
    return raw.to_pil(path, channel, options.range, None if tell is None else lambda line: tell(f"{path}: {line}"))


def _read_head(path: Path) -> bytes:
    """First bytes of a regular file; devices and pipes have no end."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # opening a folder fails below, and says why
        raise RefineError(f"{path}: is not a regular file; copy the image into one")
    with path.open("rb") as file:
        head = file.read(32)
    if not head:
        raise RefineError(f"{path}: the file is empty; copy it again")
    return head


def _check_size(image: Image.Image, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise Image.DecompressionBombError


def _is_wide(image: Image.Image) -> bool:
    return image.mode == "F" or image.mode.startswith("I")


def _raw(image: Image.Image) -> RawImage:
    stated = (0, 65535) if image.format == "PPM" and image.mode == "I" else None  # Pillow scales by its maxval
    return RawImage(np.asarray(image), stated, orientation=_orientation(image))


def _decode_png(path: Path) -> RawImage:
    """Decode a PNG of 16 bits, which Pillow has found whole but reads with 8 bits if it is coloured."""
    data = path.read_bytes()
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise ValueError("its pixels cannot be decoded")
    channels = 1 if values.ndim == 2 else values.shape[2]
    if channels > 1:
        values = cv2.cvtColor(values, cv2.COLOR_BGR2RGB if channels == 3 else cv2.COLOR_BGRA2RGBA)
    stated = None
    if bits := _significant_bits(data):
        # The standard wants them shifted to the top of the 16 bits; cameras leave them at the bottom.
        stated = (0, 2**bits - 1 if values[..., :3].max() < 2**bits else 65535)
    with Image.open(path, formats=["PNG"]) as image:
        orientation = _orientation(image)
    return RawImage(values, stated, channels > 1, channels == 4, orientation=orientation)


def _significant_bits(png: bytes) -> int | None:
    """Bits that the chunk sBIT of a PNG states, if they are fewer than its 16."""
    place = 8
    while place + 12 <= len(png) and (kind := png[place + 4 : place + 8]) != b"IDAT":
        length = int.from_bytes(png[place : place + 4], "big")
        if kind == b"sBIT":
            bits = max(png[place + 8 : place + 8 + min(length, 3)], default=0)
            return bits if 0 < bits < 16 else None
        place += 12 + length
    return None


def _pick_channel(path: Path, image: Image.Image, channel: int) -> Image.Image:
    """Take one of the channels of an image, without its alpha, as grey."""
    orientation = _orientation(image)
    if image.mode not in ("1", "L", "LA", "RGB", "RGBA"):
        image = image.convert("RGB")
    channels = [name for name in image.getbands() if name != "A"]
    picked = image.getchannel(check_channel(path, channel, len(channels)))
    picked.getexif()[ExifTags.Base.Orientation] = orientation
    return picked


def _orientation(image: Image.Image) -> int:
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def _upright(image: Image.Image) -> Image.Image:
    return image if _orientation(image) == 1 else ImageOps.exif_transpose(image)


def _as_annotated(path: Path, image: Image.Image, size: tuple[int, int] | None, exif: Exif | None) -> Image.Image:
    """Turn an image by its EXIF tag, unless its annotation was made on the image as stored."""
    upright = _upright(image)
    if size is None or upright is image or exif == "shown":
        return upright
    stored_fits, upright_fits = (i.size == (size[1], size[0]) for i in (image, upright))
    if exif is None and stored_fits and upright_fits:
        raise RefineError(
            f"{path}: has EXIF orientation {_orientation(image)}, and its size does not tell how it was annotated; "
            f"set exif of the data set to shown (turned, as viewers show it) or stored (as in the file)"
        )
    return image if exif == "stored" or (stored_fits and not upright_fits) else upright


def _to_tensor(image: Image.Image) -> Tensor:
    """Convert an image of at most 8 bits, laid over white where it is transparent: Tensor[3, H, W] uint8 RGB."""
    transparent = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    result = np.empty((3, image.height, image.width), np.uint8)
    for top in range(0, image.height, BAND):
        band = image.crop((0, top, image.width, min(top + BAND, image.height)))
        if transparent:
            band = band.convert("RGBA")
            band = Image.alpha_composite(Image.new("RGBA", band.size, "white"), band)
        cv2.split(np.asarray(band.convert("RGB")), list(result[:, top : top + BAND]))
    return torch.from_numpy(result)
