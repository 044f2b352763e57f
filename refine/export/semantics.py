"""Class and confidence of every pixel, as `refine.ops.semantic.semantic_map`, a band of rows at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from refine.export.loops import Tensors, scan
from refine.modeling.ibpp import STRIDE

BAND = 32
"""Rows computed at a time; limits the memory of the full-size logits."""


def semantic_map(logits: Tensor, image: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the best channel and its probability at each pixel.

    Args:
        logits: Tensor[L, h, w] float32 at stride 4 of the padded network input.
        image: (height, width) of the unpadded network input in pixels, Tensor[2] int64.
        size: (height, width) of the result in pixels.

    Returns:
        Tensor[size] int64 and Tensor[size] float32, 0-1.
    """
    height, width = size
    pixels = logits.permute(1, 2, 0).contiguous()  # h×w×L
    bands = (height + BAND - 1) // BAND
    down, down_weight = taps(image[0], height, bands * BAND, logits.shape[1])
    across, across_weight = taps(image[1], width, width, logits.shape[2])
    used = (pixels, across, across_weight)
    labels, confidence = scan(_band, (down.view(bands, BAND, 4), down_weight.view(bands, BAND, 4)), used)
    return labels.flatten(0, 1)[:height], confidence.flatten(0, 1)[:height]


def _band(index: Tensor, weight: Tensor, pixels: Tensor, across: Tensor, across_weight: Tensor) -> Tensors:
    """Compute `semantic_map` for a band of rows.

    Args:
        index, weight: `taps` of the rows, Tensor[BAND, 4].
        pixels: logits, Tensor[h, w, L].
        across, across_weight: `taps` of the columns, Tensor[W, 4].
    """
    lines = [pixels[index[:, k]] * weight[:, k, None, None] for k in range(4)]
    line = lines[0] + lines[1] + lines[2] + lines[3]  # BAND×w×L
    parts = [line[:, across[:, k]] * across_weight[:, k, None] for k in range(4)]
    values = parts[0] + parts[1] + parts[2] + parts[3]  # BAND×W×L
    best, label = values.max(2)
    return label, 1 / (values - best[..., None]).exp().sum(2)


def taps(image: Tensor, output: int, length: int, logits: int) -> tuple[Tensor, Tensor]:
    """Return the logits, and their weights, that interpolate each pixel of an axis.

    Logits are upsampled by `STRIDE`, cropped to the image and resized to the output, both bilinearly.

    Args:
        image: length of the axis of the network input in pixels, Tensor[] int64.
        output: length of the axis of the result in pixels.
        length: number of pixels to return, at least `output`; those beyond repeat the last one.
        logits: number of logits along the axis.

    Returns:
        Tensor[length, 4] int64 and Tensor[length, 4] float32.
    """
    pixel = torch.arange(length, dtype=torch.float64).clamp(max=output - 1)
    first, second, share = _neighbours(pixel, image.double() / output, (image - 1).double())
    last = torch.full((), logits - 1, dtype=torch.float64)
    indices, weights = [], []
    for position, of_position in ((first, 1 - share), (second, share)):
        low, high, part = _neighbours(position, 1 / STRIDE, last)
        indices += [low, high]
        weights += [of_position * (1 - part), of_position * part]
    return torch.stack(indices, 1).long(), torch.stack(weights, 1).float()


def _neighbours(position: Tensor, scale: Tensor | float, last: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two source positions of bilinear interpolation, and the weight of the second."""
    source = ((position + 0.5) * scale - 0.5).clamp(min=0)
    first = torch.minimum(source.floor(), last)
    return first, torch.minimum(first + 1, last), source - first
