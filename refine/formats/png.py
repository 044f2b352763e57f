"""PNG container: reading and validation of label PNGs before their pixels are decoded."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, NamedTuple

from refine.errors import RefineError
from refine.files import MAX_PIXELS, read_bytes

if TYPE_CHECKING:
    from pathlib import Path

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GRAY, RGB, PALETTE, RGBA = 0, 2, 3, 6
"""Colour types of PNG that can encode labels."""

_TYPES = {GRAY: "grey", RGB: "RGB", PALETTE: "palette", 4: "grey with alpha", RGBA: "RGB with alpha"}


class PngData(NamedTuple):
    """Complete PNG in memory whose pixels are not decoded yet.

    Attributes:
        data: content of the whole file.
        idat: compressed pixels (a zlib stream).
        size: (height, width) in pixels.
        depth: bits per channel.
        color: colour type of PNG.
        interlaced: whether rows are stored in several passes.
    """

    data: bytes
    idat: bytes
    size: tuple[int, int]
    depth: int
    color: int
    interlaced: bool

    @property
    def mode(self) -> str:
        """Return depth and colour type as text, for messages."""
        return f"{self.depth}-bit {_TYPES.get(self.color, 'unknown')}"


def read_container(path: str | Path, size: tuple[int, int] | None = None) -> PngData:
    """Read a PNG and validate everything but its pixels. Bytes after its end are ignored, as in all decoders.

    Args:
        path: path of the file.
        size: expected (height, width) in pixels, or None for any.

    Raises:
        RefineError: the file is missing, not a PNG, truncated, of another size or larger than `MAX_PIXELS`, or a
            checksum is wrong.
    """
    data = read_bytes(path)
    header, idat, position = b"", [], len(SIGNATURE)
    if not data.startswith(SIGNATURE):
        raise RefineError(f"{path}: is not a PNG; write labels as PNG")
    while True:
        if position + 12 > len(data):
            raise RefineError(f"{path}: is damaged (truncated after {len(data)} bytes); write it again")
        (length,) = struct.unpack_from(">I", data, position)
        kind, end = data[position + 4 : position + 8], position + 8 + length
        if end + 4 > len(data):
            raise RefineError(f"{path}: is damaged (truncated after {len(data)} bytes); write it again")
        if zlib.crc32(data[position + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise RefineError(f"{path}: is damaged (checksum of {kind!r} is wrong); write it again")
        if kind == b"IHDR":
            header = data[position + 8 : end]
        elif kind == b"IDAT":
            idat.append(data[position + 8 : end])
        elif kind == b"IEND":
            break
        position = end + 4
    if len(header) != 13 or not idat:
        raise RefineError(f"{path}: is damaged (no header or no pixels); write it again")
    width, height, depth, color, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    if not 0 < width * height <= MAX_PIXELS:
        raise RefineError(f"{path}: expected 1 to {MAX_PIXELS:,} pixels, got {width} × {height}; tile the image")
    if size is not None and (height, width) != size:
        raise RefineError(
            f"{path}: expected {size[1]} × {size[0]} pixels, got {width} × {height}; correct the PNG or the size"
        )
    return PngData(data, b"".join(idat), (height, width), depth, color, bool(interlaced))


def png_size(path: str | Path) -> tuple[int, int]:
    """Read only the header of a PNG and return its (height, width) in pixels.

    Raises:
        RefineError: the file is missing or not a PNG.
    """
    try:
        with open(path, "rb") as file:
            header = file.read(24)
    except OSError as error:
        raise RefineError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    if len(header) < 24 or not header.startswith(SIGNATURE):
        raise RefineError(f"{path}: is not a PNG, or truncated; write it again")
    width, height = struct.unpack_from(">II", header, 16)
    return height, width
