"""3 × 3 convolutions by Winograd's algorithm, for prediction on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, isqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refine.ops.strides import plain_strides

TILE = 6
"""Side of a tile of outputs; its inputs are 8 × 8, and so is its product in the transformed domain."""
MIN_CHANNELS = 64
MIN_TILES = 24
"""Fewest tiles of all maps for which it is faster."""
MAX_WASTE, MIN_TILES_WASTED = 1.7, 200
"""Most computed outputs per output (14 × 14 bins have 1.65, 7 × 7 bins 2.9), and fewest tiles above `WASTE`."""
WASTE = 1.4
MOSAIC_CHANNELS = 128
"""Fewest channels for which small maps are joined to a mosaic, which takes one more cell per row and column."""
TINY = torch.finfo(torch.float32).tiny
"""Smallest divisor of a map; the quotients of a map of zeros are zeros."""
MAX_BYTES = 2**30
"""Memory of the transformed maps, above which a convolution is computed directly."""


class WinogradConv2d(nn.Conv2d):
    """3 × 3 convolution that uses Winograd's algorithm where this is faster (Lavin and Gray, arXiv 1509.09308).

    For each output and pair of channels it multiplies 64 / 36 times rather than 9 times. It is computed by NNPACK,
    which is part of PyTorch. Outputs of a map differ from those of the direct convolution by about 1e-5 of the
    largest one.
    """

    def forward(self, x: Tensor) -> Tensor:
        if can_use(x, self.weight):
            many = min(x.shape[1], len(self.weight)) >= MOSAIC_CHANNELS
            if many and len(x) > 1 and _waste(x.shape) > WASTE and is_faster(_mosaic_shape(x.shape), self.weight):
                return self._join_maps(x)
            if is_faster(x.shape, self.weight):
                return self._compute(x, self.bias)
        return super().forward(x)

    def _compute(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return torch._nnpack_spatial_convolution(x.contiguous(), self.weight.contiguous(), bias, 1)

    def _join_maps(self, x: Tensor) -> Tensor:
        """Compute the convolution of many small maps as one of a mosaic, in which zeros separate the maps.

        A tile may hold cells of several maps, and its rounding errors are relative to the largest of them. So each
        map is divided by its largest value, and maps with NaN or infinity are not joined to others.
        """
        count, channels, height, width = x.shape
        scale = x.abs().amax((1, 2, 3), keepdim=True)
        if not scale.isfinite().all():
            return super().forward(x)
        rows, columns = _grid(count)
        x = F.pad(x / scale.clamp(min=TINY), (0, 1, 0, 1, 0, 0, 0, rows * columns - count))
        x = x.view(rows, columns, channels, height + 1, width + 1).permute(2, 0, 3, 1, 4)
        x = x.reshape(_mosaic_shape((count, channels, height, width)))
        x = self._compute(x, None)
        x = x.view(-1, rows, height + 1, columns, width + 1)[:, :, :height, :, :width].permute(1, 3, 0, 2, 4)
        x = x.reshape(rows * columns, -1, height, width)[:count].contiguous().mul_(scale)
        return x if self.bias is None else x.add_(self.bias[:, None, None])


def use_winograd(network: nn.Module) -> None:
    """Let the plain 3 × 3 convolutions of a network use Winograd's algorithm, in place.

    Where it is used, outputs are contiguous. Weights of 1 × 1 convolutions get strides that stand for no layout, so
    that these keep the layout of their input instead of converting it.
    """
    for module in network.modules():
        if type(module) is not nn.Conv2d:
            continue
        if _is_plain(module):
            module.__class__ = WinogradConv2d
        elif module.kernel_size == (1, 1):
            module.weight.data = plain_strides(module.weight.data)


def _is_plain(conv: nn.Conv2d) -> bool:
    """Return whether a convolution is 3 × 3 with stride 1, zero padding of 1, one group and many channels."""
    shape = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode)
    plain = shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")
    return plain and min(conv.in_channels, conv.out_channels) >= MIN_CHANNELS


def can_use(x: Tensor, weight: Tensor) -> bool:
    """Return whether NNPACK can convolve maps with a weight, here and now."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or weight.dtype != torch.float32 or x.dim() != 4:
        return False
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # the choice depends on the shape
        return False
    return torch._nnpack_available()  # also initialises NNPACK


def is_faster(shape: Sequence[int], weight: Tensor) -> bool:
    """Return whether Winograd's algorithm takes less time for maps of a shape and a weight."""
    count, channels, height, width = shape
    tiles = count * ceil(height / TILE) * ceil(width / TILE)
    waste = _waste(shape)
    transformed = 4 * 64 * tiles * (channels + len(weight))
    enough = tiles >= (MIN_TILES if waste < WASTE else MIN_TILES_WASTED)
    return enough and waste <= MAX_WASTE and transformed <= MAX_BYTES


def _waste(shape: Sequence[int]) -> float:
    """Return the number of computed outputs per output of a map."""
    height, width = shape[2:]
    return ceil(height / TILE) * ceil(width / TILE) * TILE**2 / max(height * width, 1)


def _grid(count: int) -> tuple[int, int]:
    """Return the rows and columns of a mosaic of `count` maps."""
    rows = max(isqrt(count), 1)
    return rows, ceil(count / rows)


def _mosaic_shape(shape: Sequence[int]) -> tuple[int, int, int, int]:
    """Return the shape of the mosaic of maps of a shape."""
    count, channels, height, width = shape
    rows, columns = _grid(count)
    return 1, channels, rows * (height + 1), columns * (width + 1)
