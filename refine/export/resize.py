"""Resizing of uint8 images as in PyTorch, bit for bit, by operations that every ONNX runtime has.

PyTorch resizes uint8 images with antialiasing in fixed point: the weights of a triangle filter are rounded to int16
with as many fractional bits as fit, and each axis, columns first, is rounded to uint8.
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_BITS = 22
"""Largest number of fractional bits of the weights."""


def resize_weights(old: Tensor, new: Tensor, positions: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the fixed-point weights that resize an axis.

    Args:
        old, new: lengths of the axis in pixels, Tensor[] int64.
        positions: 0, 1, …, Tensor[m] float64, positions of the result; beyond `new`, all weights are zero.
        pixels: 0 … old - 1, Tensor[old] float64.

    Returns:
        Tensor[m, old] float32 of integers, and the factor by which sums are divided, Tensor[] float32.
    """
    scale = old.double() / new.double()
    support = scale.clamp(min=1.0)
    centre = scale * (positions + 0.5)
    first = (centre - support + 0.5).floor().clamp(min=0)
    last = torch.minimum((centre + support + 0.5).floor(), old.double())  # exclusive
    distance = (pixels - centre[:, None] + 0.5) / support
    weights = (1 - distance.abs()).clamp(min=0)
    inside = (pixels >= first[:, None]) & (pixels < last[:, None]) & (positions < new)[:, None]
    weights = torch.where(inside, weights, 0.0)
    weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-30)
    # The largest number of bits at which the largest weight still fits into int16.
    powers = 2.0 ** torch.arange(1, MAX_BITS + 1, dtype=torch.float64, device=pixels.device)
    bits = ((0.5 + weights.max() * powers).floor() < 2**15).sum()
    factor = (2.0 ** torch.arange(MAX_BITS + 1, dtype=torch.float64, device=pixels.device))[bits]
    return (weights * factor + 0.5).floor().float(), factor.float()


def apply_weights(image: Tensor, rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor]) -> Tensor:
    """Resize Tensor[3, H, W] float32, 0-255, by the weights of both axes: Tensor[3, h, w] float32 of integers."""
    (down, down_factor), (across, across_factor) = rows, columns
    x = ((image @ across.T) / across_factor + 0.5).floor().clamp(0, 255)
    return ((down @ x) / down_factor + 0.5).floor().clamp(0, 255)
