"""Reading of windows at the resolution of the network, on the pixel grid of the whole resized image."""

from __future__ import annotations

from math import ceil, floor

import numpy as np
import torch
from PIL import Image

from refine.formats.windows import ImageWindows
from refine.inference.tiling.plan import Window
from refine.networks.native import Part
from refine.ops.semantic import Grid


def read_part(image: ImageWindows, window: Window, resized: tuple[int, int]) -> Part:
    """Read a window, and resize it as the whole image would be.

    The output of a network changes if its input shifts by a fraction of a pixel, so the objects in a window that is
    resized from its own first pixel to its last differ from those of the whole image.

    Args:
        image: reads windows of the image.
        window: what to read.
        resized: (height, width) of the whole resized image; equal to that of the image, nothing is resized.

    Raises:
        RefineError: the image cannot be read.
    """
    if resized == image.size:
        return Part(image.read(*window.place), window.size)
    axes = zip(image.size, resized, window.resized[:2], window.resized[2:], strict=True)
    rows, columns = (_region(*axis) for axis in axes)
    pixels = image.read(rows[0], columns[0], rows[1], columns[1])
    # Pillow, unlike PyTorch, takes a region with fractions of pixels, and weighs the pixels around it, too. The
    # values of both differ by rounding alone, at most 2 of 255.
    box = (columns[2], rows[2], columns[3], rows[3])
    height, width = window.resized_size
    source = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    small = source.resize((width, height), Image.Resampling.BILINEAR, box)
    step = image.size[0] / resized[0], image.size[1] / resized[1]
    top, left, _, _ = window.place
    origin = window.resized[0] * step[0] - top, window.resized[1] * step[1] - left
    return Part(torch.from_numpy(np.array(small)).permute(2, 0, 1), window.size, Grid(step, origin))


def _region(length: int, resized: int, begin: int, end: int) -> tuple[int, int, float, float]:
    """Return what resizing reads along one axis.

    Args:
        length, resized: length of the axis in pixels of the image, and of the resized image.
        begin, end: pixels of the resized image.

    Returns:
        Range of pixels of the image, and within it the region that the resized pixels fill.
    """
    step = length / resized
    reach = ceil(max(step, 1)) + 1  # of the triangle filter
    first, last = max(0, floor(begin * step) - reach), min(length, ceil(end * step) + reach)
    return first, last, max(0.0, begin * step - first), min(end * step - first, last - first)
