"""Residual blocks of ResNet and ResNeXt (He et al. 2016, Xie et al. 2017), with torchvision's parameter names."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Block of two 3×3 convolutions, of ResNet-18 and 34.

    Args:
        in_channels: number of input channels.
        planes: number of channels of both convolutions; the output has `planes * expansion`.
        stride: stride of the first convolution.
        downsample: shortcut; None stands for the identity.
        norm_layer: builds a norm for a number of channels.
    """

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        planes: int,
        stride: int,
        downsample: nn.Module | None,
        norm_layer: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, planes, 3, stride, padding=1, bias=False)
        self.bn1 = norm_layer(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = norm_layer(planes)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class Bottleneck(nn.Module):
    """Block of a 3×3 convolution, which has the stride, between two 1×1 convolutions.

    Args:
        in_channels: number of input channels.
        planes: the output has `planes * expansion` channels.
        stride: stride of the 3×3 convolution.
        downsample: shortcut; None stands for the identity.
        norm_layer: builds a norm for a number of channels.
        groups: groups of the 3×3 convolution.
        base_width: channels per group, in 64ths of `planes`.
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        planes: int,
        stride: int,
        downsample: nn.Module | None,
        norm_layer: Callable[[int], nn.Module],
        groups: int,
        base_width: int,
    ) -> None:
        super().__init__()
        width, out_channels = int(planes * (base_width / 64)) * groups, planes * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = norm_layer(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, groups=groups, bias=False)
        self.bn2 = norm_layer(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = norm_layer(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)
