"""Conversion of in-memory images and image files to 8-bit RGB tensors."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from refine.errors import RefineError
from refine.formats.images import from_pil, read_image
from refine.formats.raw import RawImage
from refine.structures.arrays import ArrayLike, as_tensor

ImageLike = str | Path | bytes | Image.Image | ArrayLike


def to_tensor(image: ImageLike) -> Tensor:
    """Convert an image of any supported type to Tensor[3, H, W] uint8 RGB.

    Args:
        image: path of a file; bytes of an encoded file; Pillow image of any mode; grey, RGB or RGBA array
            [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], or Tensor[C, H, W] with the same numbers of channels. Arrays
            and tensors contain uint8 0-255, floats 0-1, bool, 64-bit integers 0-255, or other integers, which are
            scaled like those of a file (see `refine.formats.raw.to_bytes`), as the values of a dark 16-bit image
            may all be below 256. Transparent pixels are composited over white.

    Raises:
        RefineError: the file or the bytes cannot be read.
        ValueError: an array or tensor has another shape, dtype or range, or an image has no pixels.
        TypeError: the value is not an image.
    """
    if isinstance(image, str | Path):
        return read_image(Path(image))
    if isinstance(image, bytes | bytearray):
        return _decode(bytes(image))
    if isinstance(image, Image.Image):
        if 0 in image.size:
            raise ValueError(f"image: has no pixels ({image.width} × {image.height})")
        return from_pil(image)
    if not isinstance(image, np.ndarray | Tensor):
        raise TypeError(
            f"image: expected a path, bytes, a Pillow image, an array or a tensor, got {type(image).__name__}"
        )
    tensor = as_tensor("image", image)
    if tensor.ndim == 2:
        tensor = tensor[None]
    elif tensor.ndim == 3 and isinstance(image, np.ndarray):
        tensor = tensor.movedim(-1, 0)
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3, 4) or 0 in tensor.shape:
        raise ValueError(
            "image: expected an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), or a tensor (C, H, W); got "
            f"{type(image).__name__} {tuple(image.shape)}"
        )
    if tensor.dtype != torch.uint8:
        # NumPy and torch calculate in 64 bits, and no camera writes them. `as_tensor` widens unsigned integers.
        tensor = _to_bytes(tensor, may_be_8_bit=image.dtype.itemsize == 8)
    if tensor.shape[0] == 4:
        return from_pil(Image.fromarray(_pixels(tensor)))
    return tensor.expand(3, -1, -1)


def _to_bytes(values: Tensor, may_be_8_bit: bool) -> Tensor:
    """Convert values of the dtypes that `to_tensor` accepts to uint8; integers 0-255 may be kept as they are."""
    if values.dtype == torch.bool:
        return values.to(torch.uint8) * 255
    low, high = (v.item() for v in values.detach().aminmax())
    if values.is_floating_point():
        if low >= 0 and high <= 1:
            return (values.detach().float() * 255).round().to(torch.uint8)
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("image: has values that are not finite; replace NaN and infinity")
        raise ValueError(
            f"image: expected floats 0-1, got {values.dtype} {low:g} to {high:g}; scale it, for example "
            "`(255 * (image - low) / (high - low)).astype('uint8')`"
        )
    if may_be_8_bit and low >= 0 and high <= 255:
        return values.to(torch.uint8)
    if values.shape[0] == 4:  # the dtype does not determine which alpha is opaque
        raise ValueError(
            f"image: expected uint8 with an alpha channel, got {values.dtype} up to {high}; give uint8 or RGB"
        )
    return from_pil(RawImage(_pixels(values), is_rgb=values.shape[0] == 3).to_pil("image"))


def _pixels(values: Tensor) -> np.ndarray:
    """Convert Tensor[C, H, W] to an array [H, W, C], or [H, W] for one channel."""
    array = np.ascontiguousarray(values.movedim(0, -1).cpu().numpy())
    return array[..., 0] if array.shape[-1] == 1 else array


def _decode(data: bytes) -> Tensor:
    """Decode the bytes of an image file."""
    with temporary_file(data) as path:
        try:
            return read_image(path)
        except RefineError as error:
            raise RefineError(str(error).replace(str(path), f"image ({len(data)} bytes)")) from error


@contextmanager
def temporary_file(data: bytes | bytearray) -> Iterator[Path]:
    """Write the bytes of an image file to a temporary one, and yield its path."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image"
        path.write_bytes(data)
        yield path
