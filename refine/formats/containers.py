"""Kinds of image files, told by their first bytes."""

from __future__ import annotations

import stat
from pathlib import Path

from PIL import Image, ImageFile, features

from refine.errors import RefineError, missing_extra

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that Pillow may open; its others include PostScript, which runs Ghostscript."""
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of TIFF and BigTIFF files."""
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
"""First brands of HEIF files."""


def read_head(path: Path) -> bytes:
    """Return the first bytes of a regular file; devices and pipes, which have no end, are rejected."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # opening a folder fails below with a clear message
        raise RefineError(f"{path}: is not a regular file; copy the image into one")
    with path.open("rb") as file:
        head = file.read(32)
    if not head:
        raise RefineError(f"{path}: the file is empty; copy it again")
    return head


def pillow_formats(path: Path, head: bytes) -> tuple[str, ...]:
    """Return the formats that Pillow may open a file as, given its first bytes."""
    if head[4:8] != b"ftyp":
        return FORMATS
    brands = [head[8:12], *(head[n : n + 4] for n in range(16, len(head), 4))]
    if b"avif" in brands or b"avis" in brands:
        if not features.check("avif"):
            raise RefineError(f"{path}: Pillow was installed without AVIF; update it, or convert the image to PNG")
        return ("AVIF",)
    if brands[0] in HEIC_BRANDS:
        try:
            from pillow_heif import register_heif_opener
        except ImportError as error:
            raise missing_extra(f"{path}: HEIC needs pillow-heif", "heif") from error
        register_heif_opener()
        return ("HEIF",)
    return FORMATS


def pgm_maximum(image: ImageFile.ImageFile) -> int | None:
    """Return the maximum of a PGM or PPM that is not decoded yet, if Pillow scales its values to 8 or 16 bits."""
    if image.format != "PPM" or image.mode == "F":
        return None
    arguments = image.tile[0].args
    return int(arguments[-1]) if isinstance(arguments, tuple) else None


def count_frames(image: Image.Image) -> int:
    """Return the number of frames; the further images of a multi-picture JPEG are previews and depth maps."""
    return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
