"""Deformable 3×3 convolution: each tap reads where a learned offset says."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.ops import DeformConv2d

from refine.ops.deform import deform_conv


class DeformableConv(DeformConv2d):
    """3×3 deformable convolution that predicts its own offsets (Dai et al. 2017), without a bias.

    The weight keeps the name it has in a plain convolution, so ImageNet weights load unchanged; the offsets
    start at zero, where the layer equals that convolution (with a mask: half of it).

    Args:
        in_channels, out_channels, stride, groups: as of `nn.Conv2d`.
        modulated: each tap is also weighted by a learned mask, 0-1 (DCNv2, Zhu et al. 2019).
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, groups: int = 1, modulated: bool = False
    ) -> None:
        super().__init__(in_channels, out_channels, 3, stride, padding=1, groups=groups, bias=False)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        self.modulated = modulated
        # Per tap: (y, x), then, if modulated, the logit of its mask.
        self.offset = nn.Conv2d(in_channels, 27 if modulated else 18, 3, stride, padding=1)
        nn.init.zeros_(self.offset.weight)
        assert self.offset.bias is not None
        nn.init.zeros_(self.offset.bias)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Tensor[B, C_in, H, W] -> Tensor[B, C_out, H / stride, W / stride]."""
        prediction = self.offset(x)
        mask = torch.sigmoid(prediction[:, 18:]) if self.modulated else None
        return deform_conv(x, prediction[:, :18], self.weight, self.stride[0], self.padding[0], mask)
