"""Reading of image files and Pillow images as 8-bit RGB tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

from refine.errors import RefineError
from refine.files import MAX_PIXELS
from refine.formats.containers import TIFF_MAGIC, count_frames, pgm_maximum, pillow_formats, read_head
from refine.formats.image_list import VIDEOS
from refine.formats.raw import TILE_IT, Exif, ImageOptions, RawImage, check_channel, check_page

BAND = 32
"""Number of rows converted at a time, so that they stay in the cache."""


def read_image(
    path: str | Path,
    size: tuple[int, int] | None = None,
    options: ImageOptions | None = None,
    *,
    max_pixels: int = MAX_PIXELS,
    notify: Callable[[str], None] | None = None,
) -> Tensor:
    """Read an image file and rotate it upright by its EXIF tag.

    Grey, palette and CMYK images are converted to RGB, transparent pixels are composited over white. Values of
    more than 8 bits are scaled by `raw.to_bytes`. Of a multi-picture JPEG only the first image is read; the
    others are previews and depth maps.

    Args:
        path: regular file in a format of `containers.FORMATS`, AVIF or HEIC; or a video, with a suffix of `VIDEOS`.
        size: (height, width) of its annotation in pixels, or None if there is none. An image that has this
            size only as stored is not rotated.
        options: page, channel, range of values and EXIF rotation; the defaults if None.
        max_pixels: limit on height × width, checked before decoding.
        notify: called with a one-line note if the range of values was estimated.

    Returns:
        Tensor[3, H, W] uint8 RGB.

    Raises:
        RefineError: the file is missing, not a regular file, not an image, truncated or too large; it has several
            pages or channels and none is selected; or it fits `size` with and without rotation and
            `options.exif` is None.
    """
    path, options = Path(path), options or ImageOptions()
    with _explained(path, max_pixels), _open(path, options, max_pixels, notify) as image:
        return _to_tensor(_as_annotated(path, image, size, options.exif))


def stored_size(path: str | Path, options: ImageOptions | None = None) -> tuple[int, int]:
    """Return (height, width) in pixels of an image as its file states it, before a rotation by its EXIF tag.

    Args:
        path, options: as in `read_image`.

    Raises:
        RefineError: the file is missing, not a regular file or not an image, or has no such page.
    """
    path = Path(path)
    with _explained(path, MAX_PIXELS):
        page = None if options is None else options.page
        if path.suffix.lower() in VIDEOS:
            frame = _read_frame(path, page, MAX_PIXELS)
            return frame.height, frame.width
        head = read_head(path)
        if head.startswith(TIFF_MAGIC):
            from refine.formats.tiff import page_size  # imported late: takes half a second

            return page_size(path, page)
        with Image.open(path, formats=pillow_formats(path, head)) as image:
            return image.height, image.width


@contextmanager
def _explained(path: Path, max_pixels: int) -> Iterator[None]:
    """Raise RefineError for what may happen when a file is read."""
    try:
        yield
    except FileNotFoundError as error:
        raise RefineError(f"{path}: no such file; check the path") from error
    except UnidentifiedImageError as error:
        raise RefineError(f"{path}: is not a supported image; convert it to PNG, JPEG or TIFF") from error
    except Image.DecompressionBombError as error:
        raise RefineError(f"{path}: has more than {max_pixels} pixels; {TILE_IT}") from error
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise RefineError(f"{path}: cannot be read ({error.strerror}); check the path") from error
        raise RefineError(f"{path}: is damaged or truncated ({error}); copy or export it again") from error


def is_tiff(path: str | Path) -> bool:
    """Return whether a file begins like a TIFF file; RefineError if it cannot be read."""
    with _explained(Path(path), MAX_PIXELS):
        return read_head(Path(path)).startswith(TIFF_MAGIC)


def from_pil(image: Image.Image) -> Tensor:
    """Convert a Pillow image of any mode like `read_image`: Tensor[3, H, W] uint8 RGB, upright.

    Raises:
        ValueError: a value is not finite.
    """
    found = as_decoded(image)
    return _to_tensor(_upright(found.to_pil("image") if isinstance(found, RawImage) else found))


def _open(path: Path, options: ImageOptions, max_pixels: int, notify: Callable[[str], None] | None) -> Image.Image:
    """Decode one page of a file to at most 8 bits per value, without rotating it or converting it to RGB."""
    found, channel = decode(path, options, max_pixels)
    if isinstance(found, RawImage):
        tell = None if notify is None else lambda note: notify(f"{path}: {note}")
        return found.to_pil(path, channel, options.range, tell)
    return found if channel is None else _select_channel(path, found, channel)


def decode(
    path: Path, options: ImageOptions, max_pixels: int = MAX_PIXELS
) -> tuple[RawImage | Image.Image, int | None]:
    """Decode one page of a file as it is stored, without rotating it.

    Args:
        path, options, max_pixels: as in `read_image`.

    Returns:
        Pixels, or an image of at most 8 bits per value; and the channel that still has to be selected, or None.
    """
    if path.suffix.lower() in VIDEOS:
        return _read_frame(path, options.page, max_pixels), options.channel
    head = read_head(path)
    if head.startswith(TIFF_MAGIC):
        from refine.formats.tiff import decode_plain, open_page  # imported late: takes half a second

        page, channel = open_page(path, options.page, options.channel, max_pixels)
        return page if isinstance(page, RawImage) else decode_plain(path, page), channel
    with Image.open(path, formats=pillow_formats(path, head)) as image:
        _check_size(image, max_pixels)
        frames = count_frames(image)
        number = check_page(path, options.page, frames, f"{frames} frames")
        if number != image.tell():  # HEIF files may open elsewhere
            image.seek(number)
            _check_size(image, max_pixels)
        maximum = pgm_maximum(image)
        _scale_transparency(image)
        image.load()
    if image.format == "PNG" and head[24] == 16 and not number:
        return _decode_png(path), options.channel
    return as_decoded(image, maximum), options.channel


def _read_frame(path: Path, page: int | None, max_pixels: int) -> Image.Image:
    from refine.formats import video

    if page is None:
        frames = video.count_frames(path)
        page = 1 + check_page(path, None, frames, f"{frames} frames")
    return video.read_frame(path, page, max_pixels)


def count_pages(path: Path) -> int:
    """Return the number of pages or frames that `ImageOptions.page` can select from an image file.

    Raises:
        RefineError: the file is missing, not a regular file, not an image, or damaged.
    """
    with _explained(path, MAX_PIXELS):
        head = read_head(path)
        if head.startswith(TIFF_MAGIC):
            from refine.formats.tiff import count_pages as count_tiff_pages  # imported late: takes half a second

            return count_tiff_pages(path)
        with Image.open(path, formats=pillow_formats(path, head)) as image:
            return count_frames(image)


def _check_size(image: Image.Image, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise Image.DecompressionBombError


def as_decoded(image: Image.Image, maximum: int | None = None) -> RawImage | Image.Image:
    """Return the values of an image of more than 8 bits, or the image if it has at most 8.

    Those of a PGM, which Pillow scales to 16 bits, are as its `maximum` says.
    """
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    values, stated = np.asarray(image), None
    if image.format == "PPM" and image.mode == "I":
        stated = (0, maximum or 65535)
        values = np.rint(values * (stated[1] / 65535)).astype(np.uint16)
    return RawImage(values, stated, orientation=exif_orientation(image))


def _decode_png(path: Path) -> RawImage:
    """Decode a 16-bit PNG that Pillow has already validated; Pillow reads only 8 bits of colour images."""
    data = path.read_bytes()
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise ValueError("its pixels cannot be decoded")
    channels = 1 if values.ndim == 2 else values.shape[2]
    if channels > 1:
        values = cv2.cvtColor(values, cv2.COLOR_BGR2RGB if channels == 3 else cv2.COLOR_BGRA2RGBA)
    stated = None
    if bits := _significant_bits(data):
        # The standard shifts them to the top of the 16 bits; cameras leave them at the bottom.
        stated = (0, 2**bits - 1 if values[..., :3].max() < 2**bits else 65535)
    with Image.open(path, formats=["PNG"]) as image:
        orientation, transparent = exif_orientation(image), image.info.get("transparency")
    if channels == 1 and transparent is not None:  # OpenCV applies that of colours
        opacity = np.where(values == transparent, 0, 65535).astype(np.uint16)
        values = np.stack([values, opacity], 2)
    return RawImage(values, stated, channels > 1, values.ndim == 3 and channels != 3, orientation=orientation)


def _scale_transparency(image: ImageFile.ImageFile) -> None:
    """Scale the transparent grey value of a PNG of 2 or 4 bits, not decoded yet, as Pillow scales its pixels."""
    mode, _, bits = str(image.tile[0].args).partition(";") if image.format == "PNG" and image.tile else ("", "", "")
    if mode == "L" and bits in ("2", "4") and "transparency" in image.info:
        image.info["transparency"] *= 255 // (2 ** int(bits) - 1)


def _significant_bits(png: bytes) -> int | None:
    """Return the number of bits that the sBIT chunk of a 16-bit PNG states, or None if it states none or 16."""
    position = 8
    while position + 12 <= len(png) and (kind := png[position + 4 : position + 8]) != b"IDAT":
        length = int.from_bytes(png[position : position + 4], "big")
        if kind == b"sBIT":
            bits = max(png[position + 8 : position + 8 + min(length, 3)], default=0)
            return bits if 0 < bits < 16 else None
        position += 12 + length
    return None


def _select_channel(path: Path, image: Image.Image, channel: int) -> Image.Image:
    """Return one channel of an image, other than alpha, as a grey image."""
    orientation = exif_orientation(image)
    if image.mode not in ("1", "L", "LA", "RGB", "RGBA"):
        image = image.convert("RGBA")  # to "RGB", Pillow warns of palettes with several opacities
    channels = [name for name in image.getbands() if name != "A"]
    grey = image.getchannel(check_channel(path, channel, len(channels)))
    grey.info.pop("transparency", None)  # of all channels
    grey.getexif()[ExifTags.Base.Orientation] = orientation
    return grey


def exif_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image, 1-8, or 1 if it states none."""
    value = image.getexif().get(ExifTags.Base.Orientation, 1)
    return value if isinstance(value, int) else 1  # a broken tag turns nothing


def _upright(image: Image.Image) -> Image.Image:
    return image if exif_orientation(image) == 1 else ImageOps.exif_transpose(image)


def _as_annotated(path: Path, image: Image.Image, size: tuple[int, int] | None, exif: Exif | None) -> Image.Image:
    """Rotate an image by its EXIF tag, unless it was annotated or is wanted as stored."""
    if exif == "stored":
        return image
    upright = _upright(image)
    if size is None or upright is image or exif == "shown":
        return upright
    stored_fits, upright_fits = (i.size == (size[1], size[0]) for i in (image, upright))
    if exif is None and stored_fits and upright_fits:
        raise RefineError(
            f"{path}: has EXIF orientation {exif_orientation(image)}, and its size does not show how it was "
            f"annotated; set exif of the data set, or --exif, to shown (rotated, as in viewers) or stored "
            f"(as in the file)"
        )
    return image if stored_fits and not upright_fits else upright


def _to_tensor(image: Image.Image) -> Tensor:
    """Convert an image of at most 8 bits, composited over white, to Tensor[3, H, W] uint8 RGB."""
    transparent = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    result = np.empty((3, image.height, image.width), np.uint8)
    for top in range(0, image.height, BAND):
        band = image.crop((0, top, image.width, min(top + BAND, image.height)))
        if transparent:
            band = band.convert("RGBA")
            band = Image.alpha_composite(Image.new("RGBA", band.size, "white"), band)
        cv2.split(np.asarray(band.convert("RGB")), list(result[:, top : top + BAND]))
    return torch.from_numpy(result)
