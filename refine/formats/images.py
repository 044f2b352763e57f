"""Reading pictures, whatever kind of file they are."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from refine.errors import RefineError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm"}
MAX_PIXELS = 1 << 27
"""A picture of more pixels is refused: decoded and in floats it would need gigabytes."""


def read_image(path: str | Path, size: tuple[int, int] | None = None) -> Tensor:
    """Decode a picture, turned upright by its EXIF tag.

    Args:
        path: of any format that Pillow reads; grey, palette, CMYK and 16-bit become 8-bit RGB (16 bits and
            floats by their range: up to 65535, 255 or, for floats, 1), transparent pixels are laid over white.
        size: (H, W) of its annotation: a picture that has this size as stored, and not when turned, is not
            turned.

    Returns:
        Tensor[3, H, W] uint8 RGB.

    Raises:
        RefineError: no such file, not a picture, cut off, without pixels, or too large.
    """
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            raise RefineError(f"{path}: the file is empty; copy it again")
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            image.load()
            return from_pil(image, size)
    except FileNotFoundError as error:
        raise RefineError(f"{path}: no such file; check the path") from error
    except UnidentifiedImageError as error:
        raise RefineError(f"{path}: is not a picture that can be read; convert it to PNG or JPEG") from error
    except Image.DecompressionBombError as error:
        raise RefineError(f"{path}: has more than {MAX_PIXELS} pixels; tile it") from error
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise RefineError(f"{path}: cannot be read ({error.strerror}); check the path") from error
        raise RefineError(f"{path}: is damaged or cut off ({error}); copy or export it again") from error


def from_pil(image: Image.Image, size: tuple[int, int] | None = None) -> Tensor:
    """A Pillow image of any mode, turned upright (see `read_image`) -> Tensor[3, H, W] uint8 RGB."""
    upright = ImageOps.exif_transpose(image)
    if size is None or upright.size == (size[1], size[0]) or image.size != (size[1], size[0]):
        image = upright
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image, dtype=np.float32)
        highest = values.max(initial=0)
        if not np.isfinite(values).all():
            raise ValueError("it has values that are not finite")
        top = 65535.0 if highest > 255 else 255.0 if image.mode != "F" or highest > 1 else 1.0
        image = Image.fromarray((values / top * 255).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    array = np.array(image.convert("RGB"))  # H×W×3, writable
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


def list_images(sources: Sequence[str]) -> list[Path]:
    """Files, folders (not their subfolders) and globs -> pictures, each once, sorted within a source.

    Raises:
        RefineError: a source holds no picture.
    """
    found: dict[Path, None] = {}
    for source in sources:
        path = Path(source)
        if path.is_dir():
            files = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
        elif path.exists():
            files = [path]
        else:
            files = sorted(Path(p) for p in glob.glob(source, recursive=True) if Path(p).suffix.lower() in SUFFIXES)
        if not files:
            raise RefineError(f"{source}: no picture there; give a file, a folder or a pattern in quotes")
        found.update(dict.fromkeys(files))
    return list(found)
