"""Deformable convolution (Dai et al. 2017): each tap of the kernel reads where an offset says."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import deform_conv2d

from refine.ops.pixels import weighted_pixels

# Shape letters: B images, C and O channels in and out, K taps, h and w of the output.


def deform_conv(
    x: Tensor, offset: Tensor, weight: Tensor, stride: int = 1, padding: int = 1, mask: Tensor | None = None
) -> Tensor:
    """Deformable convolution without a bias; taps are read bilinearly, and as zero outside the map.

    Args:
        x: Tensor[B, C, H, W].
        offset: Tensor[B, 2 K, h, w], (y, x) in pixels for each tap, row by row of the kernel.
        weight: Tensor[O, C / groups, k, k], K = k · k.
        stride, padding: in pixels.
        mask: Tensor[B, K, h, w], factor of each tap; None for 1.

    Returns:
        Tensor[B, O, h, w].
    """
    if x.device.type == "cpu" and x.dtype.itemsize >= 4:
        return _whole_pixels(x, offset.to(x.dtype), weight, stride, padding, mask)
    return deform_conv2d(x, offset, weight, stride=stride, padding=padding, mask=mask)


def _whole_pixels(
    x: Tensor, offset: Tensor, weight: Tensor, stride: int, padding: int, mask: Tensor | None
) -> Tensor:
    """The same, two to three times as fast as torchvision's on a core (RESULTS.md).

    A tap reads a weighted sum of four pixels; the rest is one matrix product.
    """
    (batch, channels, height, width), (out, per_group, side, _) = x.shape, weight.shape
    h, w = offset.shape[2:]
    tap = torch.arange(side, device=x.device) - padding
    places = offset.permute(0, 2, 3, 1).unflatten(3, (side * side, 2))  # B×h×w×K×2
    # Whole numbers first: one rounding, as torchvision has it.
    regular_row = (torch.arange(h, device=x.device) * stride)[:, None, None] + tap.repeat_interleave(side)
    regular_column = (torch.arange(w, device=x.device) * stride)[:, None] + tap.repeat(side)
    row, row_weight = _neighbours(places[..., 0] + regular_row, height)
    column, column_weight = _neighbours(places[..., 1] + regular_column, width)
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


def _neighbours(place: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The two pixels that a place on a line of `length` lies between, Tensor[..., 2] int64, and their weights."""
    first = place.floor()
    pixels = torch.stack([first, first + 1], -1)
    weights = (1 - (place[..., None] - pixels).abs()) * ((pixels >= 0) & (pixels < length))
    return pixels.clamp(0, length - 1).long(), weights
