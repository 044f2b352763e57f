"""Label images: one integer per pixel, in any file that stores it without loss."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from refine.errors import RefineError
from refine.files import MAX_PIXELS, read_bytes
from refine.formats.containers import TIFF_MAGIC, pgm_maximum
from refine.formats.png import GRAY, SIGNATURE, read_container
from refine.formats.tiff_rotation import load_stored

SUFFIXES = (".png", ".tif", ".tiff", ".npy", ".bmp", ".gif", ".pgm")
"""Suffixes of files that store labels without loss."""

_LOSSLESS = ("PNG", "TIFF", "BMP", "GIF", "PPM")
_LOSSY = ("JPEG", "WEBP")
_NPY_MAGIC = b"\x93NUMPY"


def read_labels(path: Path, page: int | None = None) -> np.ndarray:
    """Read a label image: [H, W] integer, as stored; a palette image gives its indices.

    Args:
        path: TIFF, PNG, BMP, GIF or PGM with one channel, or with three equal ones; or an array of NumPy.
        page: page of a TIFF stack, from 1; None refuses several.

    Raises:
        RefineError: the file is missing, damaged, too large, of a lossy format, or holds no [H, W] integers.
    """
    data = read_bytes(path)
    try:
        if data.startswith(TIFF_MAGIC):
            values = _read_tiff(path, page)
        elif data.startswith(_NPY_MAGIC):
            values = _read_npy(path, data)
        else:
            if data.startswith(SIGNATURE) and (png := read_container(path)).depth == 16 and png.color != GRAY:
                raise RefineError(f"{path}: expected one value per pixel, got {png.mode}; save labels in grey")
            values = decode(data, str(path))
    except RefineError:
        raise
    except Exception as error:  # decoders raise any kind of exception if a file is damaged
        raise RefineError(f"{path}: is damaged ({error}); save it again") from error
    return _as_integers(path, _one_channel(path, values))


def read_colors(path: Path) -> np.ndarray:
    """Read a PNG of colours, palette or RGB: [H, W, 3] uint8; raises as `decode` does."""
    return decode(read_bytes(path), str(path), "RGB")


def decode(data: bytes, where: str, mode: str | None = None) -> np.ndarray:
    """Decode an image of a lossless format in memory by Pillow: [H, W] or [H, W, C].

    Args:
        data: content of a PNG, TIFF, BMP, GIF or PGM.
        where: file and field, for messages.
        mode: mode of Pillow to convert to, such as "RGBA"; None gives the values as stored.

    Raises:
        RefineError: the data are of another format, damaged or too large.
    """
    try:
        with Image.open(BytesIO(data), formats=(*_LOSSLESS, *_LOSSY)) as image:
            _check_pixels(where, (image.height, image.width))
            if image.format in _LOSSY:
                raise RefineError(f"{where}: is {image.format}, which changes labels; save it as PNG or TIFF")
            return _as_stored(image) if mode is None else np.asarray(image.convert(mode))
    except RefineError:
        raise
    except UnidentifiedImageError as error:
        raise RefineError(f"{where}: is not a label image; save it as PNG or TIFF") from error
    except Exception as error:  # Pillow raises any kind of exception if a file is damaged
        raise RefineError(f"{where}: is damaged ({error}); save it again") from error


def _read_tiff(path: Path, number: int | None) -> np.ndarray:
    from refine.formats.tiff import open_page  # imported late: takes half a second

    page, _ = open_page(path, number, None, MAX_PIXELS)
    if not isinstance(page, int):
        return page.values
    with path.open("rb") as file, Image.open(file, formats=["TIFF"]) as image:  # see `decode_plain`
        _check_pixels(path, (image.height, image.width))
        image.seek(page)
        return _as_stored(image)


def _as_stored(image: ImageFile.ImageFile) -> np.ndarray:
    """Return the values of an image that is not decoded yet as its file has them.

    Pillow scales grey values of 2 or 4 bits, and those of a PGM with another maximum, to 8 or 16 bits, inverts
    those of a TIFF in which 0 is white, and rotates a TIFF upright.
    """
    arguments = image.tile[0].args
    raw = arguments[0] if isinstance(arguments, tuple) else arguments  # "L;4I": 4 bits, inverted
    kind, _, change = str(raw).partition(";")
    most = pgm_maximum(image)
    values = np.asarray(load_stored(image))
    if image.format == "TIFF" and kind in ("1", "L") and "I" in change:
        values = ~values
    if kind == "L" and change[:1] in ("2", "4"):
        most = 2 ** int(change[0]) - 1
    if most is None:
        return values
    return np.rint(values * (most / (65535 if image.mode == "I" else 255))).astype(values.dtype)


def _read_npy(path: Path, data: bytes) -> np.ndarray:
    try:
        values = np.load(BytesIO(data), allow_pickle=False)
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise RefineError(
            f"{path}: holds pickled Python objects, which could run code; save the masks as PNG or TIFF (in "
            f"Cellpose: File > Save masks, or --save_png)"
        ) from error
    _check_pixels(path, values.shape[:2])
    return np.asarray(values)


def _check_pixels(path: Path | str, shape: tuple[int, ...]) -> None:
    if np.prod(shape, dtype=float) > MAX_PIXELS:
        raise RefineError(f"{path}: has more than {MAX_PIXELS:,} pixels; tile it")


def _one_channel(path: Path, values: np.ndarray) -> np.ndarray:
    """Reduce equal colour channels, as of a grey image saved in colour, to one; alpha is ignored."""
    if values.ndim == 3 and values.shape[2] in (1, 3, 4) and (values[..., :3] == values[..., :1]).all():
        return values[..., 0]
    if values.ndim != 2 or not values.size:
        raise RefineError(
            f"{path}: expected one value per pixel, got an array of {' × '.join(map(str, values.shape))}; save "
            f"labels in grey, one page per file"
        )
    return values


def _as_integers(path: Path, values: np.ndarray) -> np.ndarray:
    if values.dtype == bool:
        return values.astype(np.uint8)
    if values.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            whole = values.astype(np.int64)
        if (whole != values).any():
            raise RefineError(f"{path}: has fractional values; save labels as integers")
        return whole
    if values.dtype.kind not in "iu":
        raise RefineError(f"{path}: expected integers, got {values.dtype}; save labels as integers")
    if values.dtype == np.uint64 and values.max() > np.iinfo(np.int64).max:
        raise RefineError(f"{path}: value {values.max()} is too large; renumber the labels")
    return values
