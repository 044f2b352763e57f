"""Deformable convolution (Dai et al. 2017): each kernel tap is displaced by an offset."""

from __future__ import annotations

import torch
from torch import Tensor

from refine.ops.pixels import weighted_pixels

# Shape letters: B images, C input and O output channels, K taps, h and w size of the output.


def deform_conv(
    x: Tensor, offset: Tensor, weight: Tensor, stride: int = 1, padding: int = 1, mask: Tensor | None = None
) -> Tensor:
    """Apply a deformable convolution without bias; taps are sampled bilinearly, zero outside the map.

    It is computed in float32 at least, also under autocast, as torchvision does on a GPU: a tap's position is not
    exact in half precision.

    Args:
        x: Tensor[B, C, H, W] float, input features.
        offset: Tensor[B, 2 K, h, w] float, (y, x) displacement in pixels of each tap, kernel in row-major order.
        weight: Tensor[O, C / groups, k, k] float, K = k · k.
        stride, padding: in pixels.
        mask: Tensor[B, K, h, w] float, factor of each tap; None means 1.

    Returns:
        Tensor[B, O, h, w] of x's dtype.
    """
    exact = torch.promote_types(x.dtype, torch.float32)
    values, offset, weight = x.to(exact), offset.to(exact), weight.to(exact)
    mask = None if mask is None else mask.to(exact)
    with torch.autocast(x.device.type, enabled=False):
        if x.device.type == "cpu":
            return _whole_pixels(values, offset, weight, stride, padding, mask).to(x.dtype)
        from torchvision.ops import deform_conv2d  # slow to import

        return deform_conv2d(values, offset, weight, stride=stride, padding=padding, mask=mask).to(x.dtype)


def _whole_pixels(
    x: Tensor, offset: Tensor, weight: Tensor, stride: int, padding: int, mask: Tensor | None
) -> Tensor:
    """Compute the same on a CPU, two to three times as fast per core as torchvision (RESULTS.md).

    Each tap is a weighted sum of four pixels; the rest is one matrix product.
    """
    (batch, channels, height, width), (out, per_group, side, _) = x.shape, weight.shape
    h, w = offset.shape[2:]
    tap = torch.arange(side, device=x.device) - padding
    displacement = offset.permute(0, 2, 3, 1).unflatten(3, (side * side, 2))  # B×h×w×K×2
    # The integer parts are added first, so that the sum is rounded once, as in torchvision.
    regular_row = (torch.arange(h, device=x.device) * stride)[:, None, None] + tap.repeat_interleave(side)
    regular_column = (torch.arange(w, device=x.device) * stride)[:, None] + tap.repeat(side)
    row, row_weight = _neighbours(displacement[..., 0] + regular_row, height)
    column, column_weight = _neighbours(displacement[..., 1] + regular_column, width)
    if mask is not None:
        row_weight = row_weight * mask.permute(0, 2, 3, 1)[..., None]
    row = row + (torch.arange(batch, device=x.device) * height).view(-1, 1, 1, 1, 1)
    pixel = row[..., None] * width + column[..., None, :]  # B×h×w×K×2×2
    share = row_weight[..., None] * column_weight[..., None, :]
    taps = weighted_pixels(x, pixel.view(-1, 4), share.reshape(-1, 4))
    groups = channels // per_group
    kernel = weight.view(groups, out // groups, per_group, side * side).permute(0, 3, 2, 1).flatten(1, 2)
    if groups == 1:
        result = taps.view(batch * h * w, -1) @ kernel[0]
    else:
        by_group = taps.view(batch * h * w, side * side, groups, per_group).permute(2, 0, 1, 3).flatten(2)
        result = (by_group @ kernel).transpose(0, 1).reshape(batch * h * w, out)
    return result.view(batch, h, w, out).permute(0, 3, 1, 2)


def _neighbours(position: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Return the two pixels around a position on a line of `length`, Tensor[..., 2] int64, and their weights."""
    first = position.floor()
    pixels = torch.stack([first, first + 1], -1)
    weights = (1 - (position[..., None] - pixels).abs()) * ((pixels >= 0) & (pixels < length))
    return pixels.clamp(0, length - 1).long(), weights
