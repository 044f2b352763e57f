"""EfficientNet-Lite: EfficientNet (Tan and Le 2019) with ReLU6 and without squeeze-and-excitation.

The same network as timm's, with its parameter names and initialisation. It is written here because both models of
this package have this backbone, and importing timm takes longer than their first prediction.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

LITES = {
    "tf_efficientnet_lite0": (1.0, 1.0),
    "tf_efficientnet_lite1": (1.0, 1.1),
    "tf_efficientnet_lite2": (1.1, 1.2),
    "tf_efficientnet_lite3": (1.2, 1.4),
    "tf_efficientnet_lite4": (1.4, 1.8),
}
"""Factors of width and depth by timm's name."""


class Stage(NamedTuple):
    depth: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
ENDS = (0, 1, 2, 4, 6)
"""Last stages at strides 2, 4, 8, 16 and 32."""
STEM = 32
EPSILON = 1e-3
Norm = Callable[[int], nn.Module]


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite without its classifier, from Tensor[B, 3, H, W] to the four maps at strides 4 to 32.

    Args:
        name: key of `LITES`.
        norm: builds a norm, of epsilon `EPSILON` in the published weights, for a number of channels.

    Attributes:
        channels: numbers of channels of the four maps.
    """

    def __init__(self, name: str, norm: Norm) -> None:
        super().__init__()
        width, depth = LITES[name]
        self.conv_stem = Conv2dSame(3, STEM, 3, 2, bias=False)
        self.bn1 = norm(STEM)
        for _ in range(2):  # timm draws random numbers for these, too, and a seed is to give the same network
            nn.Conv2d(8, 8, 1)
        stages, channels, before = [], [], STEM
        for n, stage in enumerate(STAGES):
            # The first and the last stage keep their depth.
            count = math.ceil(stage.depth * (depth if 0 < n < len(STAGES) - 1 else 1))
            after, blocks = _rounded(stage.channels * width), list[nn.Module]()
            for i in range(count):
                stride = stage.stride if i == 0 else 1
                if stage.expansion == 1:
                    blocks.append(SeparableBlock(before, after, stage.kernel, stride, norm))
                else:
                    expanded = _rounded(before * stage.expansion)
                    blocks.append(InvertedResidual(before, expanded, after, stage.kernel, stride, norm))
                before = after
            stages.append(nn.Sequential(*blocks))
            channels.append(after)
        self.blocks = nn.Sequential(*stages)
        self.channels = [channels[end] for end in ENDS[1:]]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
                nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_out))

    def forward(self, x: Tensor) -> list[Tensor]:
        x, outputs = F.relu6(self.bn1(self.conv_stem(x)), inplace=True), []
        for n, stage in enumerate(self.blocks):
            x = stage(x)
            if n in ENDS[1:]:
                outputs.append(x)
        return outputs

    @staticmethod
    def modules_until(level: int) -> list[str]:
        """Return the names of the modules up to the end of stride 2^level; none for level 0."""
        return ["conv_stem", "bn1", *(f"blocks.{n}" for n in range(ENDS[level - 1] + 1))] if level else []


class SeparableBlock(nn.Module):
    """Depthwise and 1×1 convolution."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv_dw = _conv(in_channels, in_channels, kernel, stride, groups=in_channels)
        self.bn1 = norm(in_channels)
        self.conv_pw = _conv(in_channels, out_channels)
        self.bn2 = norm(out_channels)
        self.skip = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu6(self.bn1(self.conv_dw(x)), inplace=True)
        out = self.bn2(self.conv_pw(out))
        return out + x if self.skip else out


class InvertedResidual(nn.Module):
    """Depthwise convolution of more channels than input and output have (MobileNetV2, Sandler et al. 2018)."""

    def __init__(
        self, in_channels: int, expanded: int, out_channels: int, kernel: int, stride: int, norm: Norm
    ) -> None:
        super().__init__()
        self.conv_pw = _conv(in_channels, expanded)
        self.bn1 = norm(expanded)
        self.conv_dw = _conv(expanded, expanded, kernel, stride, groups=expanded)
        self.bn2 = norm(expanded)
        self.conv_pwl = _conv(expanded, out_channels)
        self.bn3 = norm(out_channels)
        self.skip = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu6(self.bn1(self.conv_pw(x)), inplace=True)
        out = F.relu6(self.bn2(self.conv_dw(out)), inplace=True)
        out = self.bn3(self.conv_pwl(out))
        return out + x if self.skip else out


class Conv2dSame(nn.Conv2d):
    """Strided convolution with TensorFlow's padding, which depends on the size of the map."""

    def forward(self, x: Tensor) -> Tensor:
        sides = zip(x.shape[-2:], self.kernel_size, self.stride, strict=True)
        (top, bottom), (left, right) = (_padding(*side) for side in sides)
        x = F.pad(x, (left, right, top, bottom))
        return F.conv2d(x, self.weight, self.bias, self.stride, groups=self.groups)


def _padding(length: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return the pixels before and after a line, so that ceil(length / stride) positions fit."""
    total = max((math.ceil(length / stride) - 1) * stride + kernel - length, 0)
    return total // 2, total - total // 2


def _conv(in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    if stride > 1:
        return Conv2dSame(in_channels, out_channels, kernel, stride, groups=groups, bias=False)
    return nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, groups=groups, bias=False)


def _rounded(channels: float) -> int:
    """Round to a multiple of 8 that is no more than a tenth smaller."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
