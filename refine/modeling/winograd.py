"""3 × 3 convolutions by Winograd's algorithm, for prediction on a CPU."""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor, nn

TILE = 6
"""Side of a tile of outputs; its inputs are 8 × 8, and so is its product in the transformed domain."""
MIN_CHANNELS = 64
MIN_TILES = 24
"""Fewest tiles of all maps for which it is faster."""
MAX_WASTE, MIN_TILES_WASTED = 1.7, 200
"""Most computed outputs per output (14 × 14 bins have 1.65, 7 × 7 bins 2.9), and fewest tiles above `WASTE`."""
WASTE = 1.4
MAX_BYTES = 2**30
"""Memory of the transformed maps, above which a convolution is computed directly."""


class WinogradConv2d(nn.Conv2d):
    """3 × 3 convolution that uses Winograd's algorithm where this is faster (Lavin and Gray, arXiv 1509.09308).

    For each output and pair of channels it multiplies 64 / 36 times rather than 9 times. It is computed by NNPACK,
    which is part of PyTorch. Outputs differ from those of the direct convolution by about 1e-5 of the largest one.
    """

    def forward(self, x: Tensor) -> Tensor:
        if is_faster(x, self.weight):
            return torch._nnpack_spatial_convolution(x.contiguous(), self.weight.contiguous(), self.bias, 1)
        return super().forward(x)


def use_winograd(network: nn.Module) -> None:
    """Let the plain 3 × 3 convolutions of a network use Winograd's algorithm, in place."""
    for module in network.modules():
        if type(module) is nn.Conv2d and _is_plain(module):
            module.__class__ = WinogradConv2d


def _is_plain(conv: nn.Conv2d) -> bool:
    """Return whether a convolution is 3 × 3 with stride 1, zero padding of 1, one group and many channels."""
    shape = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode)
    plain = shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")
    return plain and min(conv.in_channels, conv.out_channels) >= MIN_CHANNELS


def is_faster(x: Tensor, weight: Tensor) -> bool:
    """Return whether Winograd's algorithm takes less time for a map and the weight of a `WinogradConv2d`."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or weight.dtype != torch.float32:
        return False
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return False
    if not torch._nnpack_available():  # also initialises NNPACK
        return False
    count, channels, height, width = x.shape
    tiles = ceil(height / TILE) * ceil(width / TILE)
    waste = tiles * TILE**2 / max(height * width, 1)
    transformed = 4 * 64 * count * tiles * (channels + len(weight))
    enough = count * tiles >= (MIN_TILES if waste < WASTE else MIN_TILES_WASTED)
    return enough and waste <= MAX_WASTE and transformed <= MAX_BYTES
