"""The PNG container: what an id-PNG must be, and what is wrong with one that is not."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from refine.errors import RefineError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MODES = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGB with alpha"}
"""Names of PNG's colour types."""

MAX_PIXELS = 2**28


@dataclass(frozen=True)
class PngData:
    """An id-PNG in memory, complete and of a mode that holds ids; its pixels are not yet decoded.

    Attributes:
        data: the whole file.
        idat: its compressed pixels (a zlib stream).
        width, height: in pixels.
        plain: 8-bit RGB in one pass, as all but exotic writers make it; else palette or interlaced.
    """

    data: bytes
    idat: bytes
    width: int
    height: int
    plain: bool


def read_container(path: str | Path) -> PngData:
    """Read a PNG and check it as far as possible without decoding pixels.

    Raises:
        RefineError: missing; not a PNG; cut off; a checksum is wrong; or not 8-bit RGB (or a palette of
            RGB colours), so that its colours are no ids.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            data = file.read()
    except OSError as error:
        raise RefineError(f"{path}: cannot be read ({error.strerror}); check the folder of PNGs") from error
    if not data.startswith(SIGNATURE):
        raise RefineError(f"{path}: is no PNG; write segment ids as an RGB PNG")
    header, idat, position = b"", [], len(SIGNATURE)
    while True:
        if position + 12 > len(data):
            raise RefineError(f"{path}: is damaged (cut off after {len(data)} bytes); write it again")
        (length,) = struct.unpack_from(">I", data, position)
        kind, end = data[position + 4 : position + 8], position + 8 + length
        if end + 4 > len(data):
            raise RefineError(f"{path}: is damaged (cut off after {len(data)} bytes); write it again")
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
        raise RefineError(f"{path}: claims {width} × {height} pixels; write it again")
    if color != 3 and (color, depth) != (2, 8):
        raise RefineError(
            f"{path}: is a {depth}-bit {MODES.get(color, 'unknown')} PNG, expected 8-bit RGB; write "
            f"id = R + 256 G + 65536 B"
        )
    return PngData(data, b"".join(idat), width, height, plain=color == 2 and not interlaced)
