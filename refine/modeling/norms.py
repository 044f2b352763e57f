"""Norm layers by name, and the convolution block that every head is made of."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from refine.modeling.config import Norm


class FrozenBatchNorm(FrozenBatchNorm2d):
    """torchvision's, in one pass over the map instead of two where it is not differentiated."""

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            return super().forward(x)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


def make_norm(name: Norm, channels: int, eps: float = 1e-5) -> nn.Module:
    """A norm layer for maps of `channels` channels.

    GroupNorm has 32 groups, as in the paper; where 32 does not divide the channels, the largest smaller
    number that does. `eps` is added to the variance.
    """
    match name:
        case "gn":
            groups = next(g for g in range(min(32, channels), 0, -1) if channels % g == 0)
            return nn.GroupNorm(groups, channels, eps)
        case "frozen_bn":
            return FrozenBatchNorm(channels, eps)
        case "sync_bn":
            return nn.SyncBatchNorm(channels, eps)
        case "bn":
            return nn.BatchNorm2d(channels, eps)
        case "none":
            return nn.Identity()


def conv_norm(
    in_channels: int,
    out_channels: int,
    kernel: int = 3,
    norm: Norm = "gn",
    stride: int = 1,
    relu: bool = True,
) -> nn.Sequential:
    """Convolution, norm and ReLU; a bias only without a norm; Kaiming fan-out initialisation.

    Args:
        in_channels, out_channels: of the convolution.
        kernel: odd; padded so that stride 1 keeps height and width.
        norm: see `make_norm`.
        stride: of the convolution.
        relu: end with a ReLU.
    """
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=norm == "none")
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    layers: list[nn.Module] = [conv, make_norm(norm, out_channels)]
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if relu else nn.Sequential(*layers)
