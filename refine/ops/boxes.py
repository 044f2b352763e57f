"""Box regression as Faster R-CNN has it, and what else is done with plain boxes."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchvision.ops import batched_nms

SCALE_CLAMP = math.log(1000.0 / 16)
"""Largest dw and dh: a box never grows beyond 62.5 times its reference."""

Weights = tuple[float, float, float, float]

# Deltas are multiplied by Python numbers: a tensor of weights would be copied to the device at each call.


def encode_boxes(reference: Tensor, boxes: Tensor, weights: Weights) -> Tensor:
    """Deltas (dx, dy, dw, dh) that move `reference` onto `boxes`.

    Args:
        reference, boxes: Tensor[N, 4] float32 in pixels, all with an area.
        weights: multiply the deltas.

    Returns:
        Tensor[N, 4].
    """
    x1, y1, x2, y2 = reference.unbind(1)
    u1, v1, u2, v2 = boxes.unbind(1)
    width, height = x2 - x1, y2 - y1
    dx = (u1 + u2 - x1 - x2) / 2 / width * weights[0]
    dy = (v1 + v2 - y1 - y2) / 2 / height * weights[1]
    dw = torch.log((u2 - u1) / width) * weights[2]
    dh = torch.log((v2 - v1) / height) * weights[3]
    return torch.stack([dx, dy, dw, dh], 1)


def decode_boxes(deltas: Tensor, reference: Tensor, weights: Weights, clamp: float = SCALE_CLAMP) -> Tensor:
    """Inverse of `encode_boxes`, for one or more sets of deltas per box.

    Args:
        deltas: Tensor[N, 4 k].
        reference: Tensor[N, 4] in pixels.
        weights: as they were encoded with.
        clamp: dw and dh are at most this.

    Returns:
        Tensor[N, 4 k] float32, x1, y1, x2, y2 each.
    """
    dx, dy, dw, dh = deltas.float().unflatten(1, (-1, 4)).unbind(-1)  # N×k
    x1, y1, x2, y2 = reference.float()[:, None].unbind(-1)  # N×1
    width, height = x2 - x1, y2 - y1
    x = (x1 + x2) / 2 + dx / weights[0] * width
    y = (y1 + y2) / 2 + dy / weights[1] * height
    w = width / 2 * torch.exp((dw / weights[2]).clamp(max=clamp))
    h = height / 2 * torch.exp((dh / weights[3]).clamp(max=clamp))
    return torch.stack([x - w, y - h, x + w, y + h], -1).flatten(1)


def clip_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes cut to an image of `size` (height, width): Tensor[..., 4 k] -> the same shape."""
    height, width = size
    x, y = boxes.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([x.clamp(0, width), y.clamp(0, height)], -1).flatten(-2)


def is_nonempty(boxes: Tensor) -> Tensor:
    """Tensor[N, 4] -> Tensor[N] bool: wider and higher than nothing."""
    return (boxes[:, 2:] > boxes[:, :2]).all(1)


def intersection_over_area(boxes: Tensor, regions: Tensor) -> Tensor:
    """Share of each box inside each region: Tensor[N, 4], Tensor[M, 4] -> Tensor[N, M], 0-1."""
    low = torch.maximum(boxes[:, None, :2], regions[:, :2])
    high = torch.minimum(boxes[:, None, 2:], regions[:, 2:])
    inside = (high - low).clamp(min=0).prod(-1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    return inside / area.clamp(min=1e-6)[:, None]


def nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou: float) -> Tensor:
    """Non-maximum suppression among the boxes of each group.

    Args:
        boxes: Tensor[N, 4] in pixels.
        scores: Tensor[N].
        groups: Tensor[N] int64; boxes of different groups do not suppress each other.
        iou: a box is dropped that overlaps a better one by more than this.

    Returns:
        Tensor[K] int64, what is kept by falling score; among equal scores the earlier comes first.
    """
    keep = batched_nms(boxes, scores, groups, iou).sort().values
    return keep[scores[keep].argsort(descending=True, stable=True)]
