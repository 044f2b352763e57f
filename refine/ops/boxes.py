"""Box regression as Faster R-CNN has it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SCALE_CLAMP = math.log(1000.0 / 16)
"""Largest dw and dh: a box never grows beyond 62.5 times its reference."""


def encode_boxes(reference: Tensor, boxes: Tensor, weights: tuple[float, float, float, float]) -> Tensor:
    """Deltas (dx, dy, dw, dh) that move `reference` onto `boxes`.

    Args:
        reference, boxes: Tensor[N, 4] in pixels; `reference` has an area.
        weights: multiply the deltas.

    Returns:
        Tensor[N, 4].
    """
    size = reference[:, 2:] - reference[:, :2]
    target = boxes[:, 2:] - boxes[:, :2]
    shift = (boxes[:, :2] + target / 2 - reference[:, :2] - size / 2) / size
    return torch.cat([shift, torch.log(target / size)], 1) * reference.new_tensor(weights)


def decode_boxes(deltas: Tensor, reference: Tensor, weights: tuple[float, float, float, float]) -> Tensor:
    """Inverse of `encode_boxes`, for one or more sets of deltas per box.

    Args:
        deltas: Tensor[N, 4 k].
        reference: Tensor[N, 4] in pixels.
        weights: as they were encoded with.

    Returns:
        Tensor[N, 4 k] float32, x1, y1, x2, y2 each.
    """
    deltas, reference = deltas.float().unflatten(-1, (-1, 4)), reference.float()[:, None]
    deltas = deltas / deltas.new_tensor(weights)
    size = reference[..., 2:] - reference[..., :2]
    centre = reference[..., :2] + size / 2 + deltas[..., :2] * size
    half = size * torch.exp(deltas[..., 2:].clamp(max=SCALE_CLAMP)) / 2
    return torch.cat([centre - half, centre + half], -1).flatten(1)


def clip_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes cut to an image of `size` (height, width): Tensor[..., 4 k] -> the same shape."""
    height, width = size
    pairs = boxes.unflatten(-1, (-1, 2))
    x, y = pairs[..., 0].clamp(0, width), pairs[..., 1].clamp(0, height)
    return torch.stack([x, y], -1).flatten(-2)


def is_nonempty(boxes: Tensor) -> Tensor:
    """Tensor[N, 4] -> Tensor[N] bool: wider and higher than nothing."""
    return ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)


def intersection_over_area(boxes: Tensor, regions: Tensor) -> Tensor:
    """Share of each box inside each region: Tensor[N, 4], Tensor[M, 4] -> Tensor[N, M], 0-1."""
    low = torch.maximum(boxes[:, None, :2], regions[:, :2])
    high = torch.minimum(boxes[:, None, 2:], regions[:, 2:])
    inside = (high - low).clamp(min=0).prod(-1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    return inside / area.clamp(min=1e-6)[:, None]
