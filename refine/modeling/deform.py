"""Deformable 3×3 convolution, whose taps are displaced by learned offsets."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from refine.ops.deform import deform_conv


class DeformableConv(nn.Conv2d):
    """3×3 deformable convolution that predicts its own offsets (Dai et al. 2017), without a bias.

    The weight has the same name as in a plain convolution, so that ImageNet weights load unchanged. Offsets start
    at zero, where the layer equals a plain convolution (half of it if modulated).

    Args:
        in_channels, out_channels, stride, groups: arguments of `nn.Conv2d`.
        modulated: whether each tap is also weighted by a learned mask, 0-1 (DCNv2, Zhu et al. 2019).
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, groups: int = 1, modulated: bool = False
    ) -> None:
        super().__init__(in_channels, out_channels, 3, stride, padding=1, groups=groups, bias=False)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        self.modulated = modulated
        # For all taps the offsets (y, x), then, if modulated, the logits of their masks.
        self.offset = nn.Conv2d(in_channels, 27 if modulated else 18, 3, stride, padding=1)
        nn.init.zeros_(self.offset.weight)
        assert self.offset.bias is not None
        nn.init.zeros_(self.offset.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve Tensor[B, C_in, H, W] to Tensor[B, C_out, H / stride, W / stride]."""
        prediction = self.offset(x)
        mask = torch.sigmoid(prediction[:, 18:]) if self.modulated else None
        return deform_conv(x, prediction[:, :18], self.weight, self.stride[0], padding=1, mask=mask)
