"""Weighted sums of the pixels of a map."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def weighted_pixels(x: Tensor, pixel: Tensor, weight: Tensor) -> Tensor:
    """Sums of k pixels each, with weights.

    Fast on a CPU where x is laid out channels last: the channels of a pixel then lie side by side.

    Args:
        x: Tensor[B, C, H, W].
        pixel: Tensor[N, k] int64, (image · H + row) · W + column.
        weight: Tensor[N, k] of x's dtype.

    Returns:
        Tensor[N, C].
    """
    table = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
    return F.embedding_bag(pixel, table, per_sample_weights=weight, mode="sum")
