"""Exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def build_ema(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of the model whose weights trail the trained ones; buffers are copied as they are.

    After n updates the decay is min(decay, (1 + n) / (10 + n)), so that short runs forget their start.

    Args:
        model: its current weights are the start.
        decay: share of the old average that each update keeps, 0-1.
    """

    def lerp(averages: Sequence[Tensor], weights: Sequence[Tensor], updates: Tensor | int) -> None:
        n = int(updates)
        keep = min(decay, (1 + n) / (10 + n))
        torch._foreach_lerp_(list(averages), list(weights), 1 - keep)

    average = AveragedModel(model, multi_avg_fn=lerp)
    average.requires_grad_(False)
    return average
