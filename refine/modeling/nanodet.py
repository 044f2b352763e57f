"""NanoDet-G, a one-stage detector (https://github.com/RangiLyu/nanodet, Apache-2.0): backbone, neck and head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDES = (8, 16, 32)
"""Strides of the three output maps in pixels of the input."""

NUM_CLASSES = 80
"""Number of classes: COCO's things, in the order of their ids."""

BINS = 11
"""Bins of the distribution over 0..10 strides whose mean is the distance from a cell's centre to a box side."""

BGR_MEAN = (103.53, 116.28, 123.675)
BGR_STD = (57.375, 57.12, 58.395)
"""Normalisation of the input, which has BGR channels on a 0-255 scale."""


CHANNELS = (64, 128, 128, 128)
"""Numbers of channels of the maps at strides 4, 8, 16 and 32."""


@dataclass
class NanoDetOutput:
    """Output of the network for B images.

    Attributes:
        classes: class logits, Tensor[B, h·w, 80] per level in `STRIDES`, cells row by row.
        sides: logits of the distances to left, top, right and bottom, Tensor[B, h·w, 4, 11] per level.
        maps: Tensor[B, C, H/s, W/s] for s = 4, 8, 16, 32 and C in `CHANNELS`: the finest map of the backbone, and
            the levels from which classes and sides are predicted.
    """

    classes: list[Tensor]
    sides: list[Tensor]
    maps: list[Tensor]


class Conv(nn.Module):
    """Convolution with its BatchNorm folded into weight and bias, followed by a leaky ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.conv(x), 0.1, inplace=True)


class Stage(nn.Module):
    """Stage that doubles the channels, and may halve the resolution: half-width convolutions beside a shortcut."""

    def __init__(self, channels: int, pairs: int, stride: int) -> None:
        super().__init__()
        self.enter = Conv(channels, channels, stride)
        half = channels // 2
        self.pairs = nn.ModuleList(nn.Sequential(Conv(channels, half), Conv(half, half)) for _ in range(pairs))
        self.leave = Conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x = self.enter(x)
        for pair in self.pairs:
            x = pair[0](x)  # type: ignore[index]
            x = torch.cat([pair[1](x), x], 1)  # type: ignore[index]
        return torch.cat([self.leave(x), shortcut], 1)


class NanoDet(nn.Module):
    """Detector that predicts class and side logits of every cell of normalised BGR images, Tensor[B, 3, H, W].

    H and W must be multiples of 32; the published weights were trained at 416 × 416.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = Conv(3, 32, stride=2)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.stages = nn.ModuleList([Stage(32, 1, 1), Stage(64, 2, 2), Stage(128, 2, 2), Stage(256, 3, 2)])
        self.laterals = nn.ModuleList(nn.Conv2d(channels, 128, 1) for channels in (128, 256, 512))
        self.towers = nn.ModuleList(Conv(128, 128) for _ in STRIDES)
        self.predictors = nn.ModuleList(nn.Conv2d(128, NUM_CLASSES + 4 * BINS, 1) for _ in STRIDES)

    def forward(self, x: Tensor) -> NanoDetOutput:
        """Compute the class and side logits of each level, and the maps."""
        x = self.pool(self.stem(x))
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        levels = [lateral(m) for lateral, m in zip(self.laterals, maps[1:], strict=True)]
        for n in (1, 0):
            levels[n] = levels[n] + _resize(levels[n + 1], levels[n])
        for n in (1, 2):
            levels[n] = levels[n] + _resize(levels[n - 1], levels[n])
        classes, sides = [], []
        for level, tower, predictor in zip(levels, self.towers, self.predictors, strict=True):
            logits = predictor(tower(level)).flatten(2).transpose(1, 2)  # B×h·w×124
            classes.append(logits[..., :NUM_CLASSES])
            sides.append(logits[..., NUM_CLASSES:].unflatten(2, (4, BINS)))
        return NanoDetOutput(classes, sides, [maps[0], *levels])


def cells(maps: Sequence[Tensor]) -> Tensor:
    """Return (x, y, stride) of the centre of each cell, Tensor[R, 3], for maps Tensor[B, C, h, w] per level."""
    found = []
    for level, stride in zip(maps, STRIDES, strict=True):
        y, x = ((torch.arange(n, device=level.device) + 0.5) * stride for n in level.shape[-2:])
        y, x = torch.meshgrid(y, x, indexing="ij")
        found.append(torch.stack([x, y, torch.full_like(x, stride)], -1).flatten(0, 1))
    return torch.cat(found)


def decode(sides: Tensor, centres: Tensor) -> Tensor:
    """Decode the boxes of N cells.

    Args:
        sides: logits of the distances, Tensor[N, 4, 11].
        centres: centres and strides, rows of `cells`, Tensor[N, 3].

    Returns:
        Tensor[N, 4] in pixels of the detector's input.
    """
    distance = sides.float().softmax(-1) @ torch.arange(float(BINS), device=sides.device) * centres[:, 2:]
    centre = centres[:, :2]
    return torch.cat([centre - distance[:, :2], centre + distance[:, 2:]], 1)


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)
