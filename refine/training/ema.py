"""Exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def build_ema(model: nn.Module, decay: float) -> AveragedModel:
    """Return a copy of a model that averages its weights exponentially; buffers are copied without averaging.

    After n updates the decay is min(decay, (1 + n) / (10 + n)), so that the initial weights lose their influence
    in short runs too.

    Args:
        model: network, whose current weights are the initial average.
        decay: weight of the old average in each update, 0-1.
    """

    def lerp(averages: Sequence[Tensor], weights: Sequence[Tensor], updates: Tensor | int) -> None:
        n = int(updates)
        keep = min(decay, (1 + n) / (10 + n))
        torch._foreach_lerp_(list(averages), list(weights), 1 - keep)

    average = AveragedModel(model, multi_avg_fn=lerp)
    average.requires_grad_(False)
    return average
