"""Weighted sums of feature-map pixels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def weighted_pixels(x: Tensor, pixel: Tensor, weight: Tensor) -> Tensor:
    """Compute N weighted sums of k pixels each.

    Fast on a CPU if x is in channels-last layout, where the channels of a pixel are contiguous.

    Args:
        x: Tensor[B, C, H, W] float, feature maps.
        pixel: Tensor[N, k] int64, flat pixel index (image · H + row) · W + column.
        weight: Tensor[N, k] of x's dtype, weight of each pixel.

    Returns:
        Tensor[N, C] of x's dtype.
    """
    table = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
    return F.embedding_bag(pixel, table, per_sample_weights=weight, mode="sum")
