"""Selection of pages and channels of TIFF files, and decoding of pixels that Pillow cannot decode."""

from __future__ import annotations

import logging
import lzma
import math
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image
from tifffile import COMPRESSION, PHOTOMETRIC, TiffFile, TiffFrame, TiffPage, TiffPageSeries

from refine.errors import RefineError
from refine.files import MAX_PIXELS
from refine.formats.raw import TILE_IT, Range, RawImage, check_channel, check_page
from refine.formats.tiff_rotation import load_stored

WORDS = {"Z": "slices", "T": "time points"}
"""Names of tifffile's axes along which pages are counted; other axes are called pages."""
UNBOUNDED: dict[int, Callable[[], Any]] = {
    COMPRESSION.ADOBE_DEFLATE: zlib.decompressobj,
    COMPRESSION.DEFLATE: zlib.decompressobj,
    COMPRESSION.LZMA: lzma.LZMADecompressor,
}
"""Codecs that tifffile decompresses to any size, regardless of the header."""
MAX_LAST_CHANNELS = 16
"""Length up to which the last of three axes without names is channels if the other two are longer."""
GREY = (PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.MINISBLACK)
logging.getLogger("tifffile").addHandler(logging.NullHandler())  # damaged files raise errors instead of log lines


def open_page(
    path: Path, page: int | None, channel: int | None, max_pixels: int
) -> tuple[RawImage | int, int | None]:
    """Find the requested page, and decode it unless Pillow can.

    Pages are counted over all axes but rows, columns, samples and channels, in the order of the file. Reduced
    copies (thumbnails, pyramid levels) do not count.

    Args:
        path: path of a TIFF file.
        page, channel: as in `ImageOptions`.
        max_pixels: limit on height × width.

    Returns:
        Pixels, or the index, from 0, of the page that Pillow can decode; and the channel that still has to be
        selected from them, or None.

    Raises:
        RefineError: the file is damaged, too large or of an unsupported kind, or has no such page or channel.
        OSError: the file cannot be read.
    """
    with opened(path) as file:
        return _read(file, path, page, channel, max_pixels)


def decode_plain(path: Path, index: int) -> Image.Image:
    """Decode a page by Pillow as it is stored; the EXIF data of the result give the orientation.

    Pillow shows the lowest value of some files as white; `info["inverted"]` of the result tells whether it did.

    Args:
        path: path of a TIFF file.
        index: index, from 0, of the page.
    """
    # Given a path, Pillow maps some files into memory, and those that are rotated with width and height exchanged.
    with path.open("rb") as file, Image.open(file, formats=["TIFF"]) as image:
        image.seek(index)
        image.info["inverted"] = (
            image.getexif().get(ExifTags.Base.PhotometricInterpretation) == PHOTOMETRIC.MINISWHITE
        )
        return load_stored(image)


def page_size(path: Path, page: int | None) -> tuple[int, int]:
    """Return (height, width) of a page in pixels; arguments and errors as in `open_page`."""
    with opened(path) as file:
        series, _ = find_page(file, path, page)
        height, width = (series.shape[axes_of(series).index(axis)] for axis in "YX")
        return height, width


@contextmanager
def opened(path: str | Path) -> Iterator[TiffFile]:
    """Open a TIFF file, but not the other files that an OME file refers to; errors as in `open_page`."""
    try:
        with TiffFile(path, _multifile=False) as file:
            yield file
    except (RefineError, OSError):
        raise
    except Exception as error:  # tifffile raises any kind of exception if a header is damaged
        raise RefineError(f"{path}: is damaged or truncated ({error}); copy or export it again") from error


def _read(
    file: TiffFile, path: Path, page: int | None, channel: int | None, max_pixels: int
) -> tuple[RawImage | int, int | None]:
    series, position = find_page(file, path, page)
    key, axes = series.keyframe, axes_of(series)
    if "C" in axes:
        position["C"], channel = check_channel(path, channel, series.shape[axes.index("C")]), None
    height, width = (series.shape[axes.index(axis)] for axis in "YX")
    if height * width > max_pixels or math.prod(key.shape) > 8 * max_pixels:
        raise RefineError(f"{path}: has more than {max_pixels} pixels; {TILE_IT}")
    lead = _leading_axes(series)
    if lead is None:  # one header for many pages, as in large stacks written by ImageJ
        kind = np.dtype(series.dtype).newbyteorder(file.byteorder)
        values: np.ndarray = np.memmap(path, kind, "r", series.dataoffset or 0, series.shape)
        orientation = orientation_of(key)
    else:
        # An array whose last axis is channels may be stored as one page per row of the image.
        first = next((n for n, axis in enumerate(axes[:lead]) if axis in "YXS"), lead)
        count = math.prod(series.shape[first:lead])
        if count * math.prod(key.shape) > 8 * max_pixels:
            raise RefineError(f"{path}: has more than {max_pixels} pixels; {TILE_IT}")
        at = tuple(position[axis] for axis in axes[:first])
        start = count * (int(np.ravel_multi_index(at, series.shape[:first])) if first else 0)
        found = [series.pages[n] for n in range(start, start + count)]
        axes = axes[first:]
        if first == lead and found[0] is not None and set(axes) <= set("YXS") and _is_plain(key):
            return int(found[0].index), channel
        _check_kind(key, path)
        decoded = [_decode(each, key, path) for each in found]
        values, orientation = np.stack([pixels for pixels, _ in decoded]), decoded[0][1]
        values = values.reshape(series.shape[first:])
    values = values[tuple(slice(None) if axis in "YXS" else position[axis] for axis in axes)]
    axes = "".join(axis for axis in axes if axis in "YXS")
    values = np.ascontiguousarray(values.transpose([axes.index(axis) for axis in "YXS" if axis in axes]))
    raw = RawImage(
        values,
        stated=stated_range(file, key),
        is_rgb=key.photometric == PHOTOMETRIC.RGB,
        has_alpha=has_alpha(key),
        multiplied=is_multiplied(key),
        inverted=key.photometric == PHOTOMETRIC.MINISWHITE,
        orientation=orientation,
    )
    return raw, channel


def count_pages(path: Path) -> int:
    """Return the number of pages that `open_page` can select; errors as there."""
    with opened(path) as file:
        _, counted = _stacks(file)
        return sum(math.prod(n for _, n in axes) for axes in counted)


def _stacks(file: TiffFile) -> tuple[list[TiffPageSeries], list[list[tuple[str, int]]]]:
    """Return the series that are no reduced copies, and the axes along which pages are counted in each."""
    stacks = [s for s in file.series if not s.keyframe.is_reduced] or list(file.series)
    return stacks, [
        [(axis, n) for axis, n in zip(axes_of(s), s.shape, strict=True) if axis not in "YXSC"] for s in stacks
    ]


def find_page(file: TiffFile, path: Path, page: int | None) -> tuple[TiffPageSeries, dict[str, int]]:
    """Return the series that contains a page, and the index of the page along each axis that counts pages."""
    stacks, counted = _stacks(file)
    counts = [math.prod(n for _, n in axes) for axes in counted]
    pages = sum(counts)
    what = f"{pages} pages"
    if len(stacks) == 1 and all(axis in WORDS for axis, _ in counted[0]):
        what = " × ".join(f"{n} {WORDS[axis]}" for axis, n in counted[0])
    if "C" in (names := axes_of(stacks[0])):
        what += f" of {stacks[0].shape[names.index('C')]} channels"
    number = check_page(path, page, pages, what)
    for series, axes, count in zip(stacks, counted, counts, strict=True):
        if number < count:
            position = np.unravel_index(number, [n for _, n in axes]) if axes else ()
            return series, {axis: int(n) for (axis, _), n in zip(axes, position, strict=True)}
        number -= count
    raise RefineError(f"{path}: contains no image; export it again")


def axes_of(series: TiffPageSeries) -> str:
    """Return the name of each axis; an array (…, H, W, C) written without names has those of pages by tifffile."""
    axes: str = series.axes
    if axes.endswith("QYX") and series.shape[-1] <= MAX_LAST_CHANNELS < min(series.shape[-3:-1]):
        return f"{axes[:-3]}YXC"
    return axes


def _leading_axes(series: TiffPageSeries) -> int | None:
    """Return the number of leading axes that count pages, or None if pages have no headers of their own."""
    for lead in range(len(series.shape)):
        if math.prod(series.shape[:lead]) == len(series.pages):
            return lead if math.prod(series.shape[lead:]) == math.prod(series.keyframe.shape) else None
    return None


def has_alpha(page: TiffPage) -> bool:
    return page.samplesperpixel in (2, 4) and bool(page.extrasamples) and page.extrasamples[-1] in (1, 2)


def is_multiplied(page: TiffPage) -> bool:
    return has_alpha(page) and page.extrasamples[-1] == 1


def _is_plain(page: TiffPage) -> bool:
    """Return whether Pillow decodes a page without loss: at most 8 bits, grey or in a colour space."""
    if page.dtype not in (np.uint8, np.bool_):
        return False
    return page.samplesperpixel - has_alpha(page) == 1 if page.photometric in GREY else page.samplesperpixel <= 4


def _check_kind(page: TiffPage, path: Path) -> None:
    if page.dtype is None or page.photometric not in (*GREY, PHOTOMETRIC.RGB):
        kind = getattr(page.photometric, "name", page.photometric)
        raise RefineError(
            f"{path}: is a TIFF of kind {kind} with {page.bitspersample} bits, which is not supported; convert it "
            f"to grey or RGB"
        )


def check_expansion(page: TiffPage | TiffFrame, key: TiffPage) -> None:
    """Raise ValueError if a strip or tile decompresses to far more than the header states.

    One megabyte can contain a compressed gigabyte. Some writers pad strips, so up to twice the size is accepted.
    """
    size = math.prod(key.chunks) * np.dtype(key.dtype).itemsize
    if size > np.dtype(key.dtype).itemsize * 8 * MAX_PIXELS:
        raise ValueError(f"its strips or tiles have {key.chunks} pixels")
    limit = 2 * size
    start = UNBOUNDED.get(key.compression)
    if start is None:
        return
    handle = key.parent.filehandle
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        handle.seek(offset)
        if len(start().decompress(handle.read(count), limit + 1)) > limit:
            raise ValueError(f"expected a strip or tile of {size} bytes, got more than {limit}")


def _decode(page: TiffPage | TiffFrame | None, key: TiffPage, path: Path) -> tuple[np.ndarray, int]:
    """Decode a page with header `key`; return its pixels and their remaining EXIF orientation."""
    if page is None:
        raise RefineError(f"{path}: the page is stored in another file; export all pages into one file")
    check_expansion(page, key)
    try:
        return page.asarray(), orientation_of(key)
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        # tifffile alone has no LZW and JPEG codecs; Pillow has both, for one sample of 16 bits or more.
        if key.samplesperpixel == 1:
            values = np.asarray(decode_plain(path, int(page.index)))
            if values.dtype == key.dtype:
                return values, orientation_of(key)
        compression = getattr(key.compression, "name", key.compression)
        raise RefineError(
            f"{path}: its {compression} compression needs the package imagecodecs; install the extra `tiff`, or "
            f"save the image without compression"
        ) from error


def orientation_of(page: TiffPage) -> int:
    tag = page.tags.get("Orientation")
    return int(tag.value) if tag is not None and tag.value in range(1, 9) else 1


def stated_range(file: TiffFile, page: TiffPage) -> Range | None:
    """Return the range of the significant bits if the file states fewer bits than it stores, else None."""
    bits = page.bitspersample
    if file.is_ome and (found := re.search(r'SignificantBits="(\d{1,2})"', file.ome_metadata or "")):
        bits = int(found[1])
    elif (tag := page.tags.get("MaxSampleValue")) is not None:
        bits = int(np.max(tag.value)).bit_length()
    return (0, 2**bits - 1) if 0 < bits < np.dtype(page.dtype).itemsize * 8 else None
