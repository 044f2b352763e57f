"""Masks of instances in the frame of the image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def paste_masks(roi_masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """Masks on a regular grid over their boxes -> masks of the whole image.

    Args:
        roi_masks: Tensor[N, M, M], 0-1.
        boxes: Tensor[N, 4] in pixels.
        size: (height, width) of the image.
        threshold: a pixel belongs to the mask at or above it.

    Returns:
        Tensor[N, height, width] bool.
    """
    height, width = size
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool, device=boxes.device)
    for mask, roi, (x1, y1, x2, y2) in zip(masks, roi_masks, boxes.tolist(), strict=True):
        left, top = max(int(x1) - 1, 0), max(int(y1) - 1, 0)
        right, bottom = min(int(x2) + 2, width), min(int(y2) + 2, height)
        if right <= left or bottom <= top or x2 <= x1 or y2 <= y1:
            continue
        x = (torch.arange(left, right, device=boxes.device) + 0.5 - x1) / (x2 - x1) * 2 - 1
        y = (torch.arange(top, bottom, device=boxes.device) + 0.5 - y1) / (y2 - y1) * 2 - 1
        grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)[None]
        value = F.grid_sample(roi[None, None].float(), grid, align_corners=False)[0, 0]
        mask[top:bottom, left:right] = value >= threshold
    return masks
