"""Norm layers by name, and the convolution block that every head is made of."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from refine.modeling.config import Norm
from refine.structures import ImageBatch

M = TypeVar("M", bound=Callable[..., Any])
_PADDED: ContextVar[ImageBatch | None] = ContextVar("padded", default=None)


@contextmanager
def valid_pixels(images: ImageBatch) -> Iterator[None]:
    """Within the block, `by_image` leaves the padding of this batch out."""
    token = _PADDED.set(images)
    try:
        yield
    finally:
        _PADDED.reset(token)


def over_valid_pixels(method: M) -> M:
    """Run a method whose first argument is an ImageBatch within `valid_pixels` of that."""

    @functools.wraps(method)
    def wrapped(self: Any, images: ImageBatch, *arguments: Any, **options: Any) -> Any:
        with valid_pixels(images):
            return method(self, images, *arguments, **options)

    return cast(M, wrapped)


def by_image(x: Tensor, op: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply `op` to each image without its padding, if within `valid_pixels`; padding comes out as zeros.

    So a convolution that follows sees the same beyond the border of an image whether it is padded or not.

    Args:
        x: Tensor[B, C, h, w], a map of the batch.
        op: keeps height and width, or multiplies both by a whole number.
    """
    images, (rows, columns) = _PADDED.get(), x.shape[-2:]
    if images is None:
        return op(x)
    height, width = images.tensor.shape[-2:]
    valid = [(-(-h * rows // height), -(-w * columns // width)) for h, w in images.sizes]
    if all(size == (rows, columns) for size in valid):
        return op(x)
    parts = [op(x[n : n + 1, :, :h, :w]) for n, (h, w) in enumerate(valid)]
    scale = parts[0].shape[2] // valid[0][0]
    return torch.cat([F.pad(p, (0, scale * columns - p.shape[3], 0, scale * rows - p.shape[2])) for p in parts])


class ImageGroupNorm(nn.GroupNorm):
    """GroupNorm of image maps: its statistics are those of each image, not of its padding (see `by_image`)."""

    def forward(self, x: Tensor) -> Tensor:
        return by_image(x, super().forward)


class FrozenBatchNorm(FrozenBatchNorm2d):
    """torchvision's, in one pass over the map instead of two where it is not differentiated."""

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            return super().forward(x)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


def make_norm(name: Norm, channels: int, eps: float = 1e-5, of_boxes: bool = False) -> nn.Module:
    """A norm layer for maps of `channels` channels.

    GroupNorm has 32 groups, as in the paper; where 32 does not divide the channels, the largest smaller
    number that does. `eps` is added to the variance. Maps `of_boxes` have no padding.
    """
    match name:
        case "gn":
            groups = next(g for g in range(min(32, channels), 0, -1) if channels % g == 0)
            return (nn.GroupNorm if of_boxes else ImageGroupNorm)(groups, channels, eps)
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
    of_boxes: bool = False,
) -> nn.Sequential:
    """Convolution, norm and ReLU; a bias only without a norm; Kaiming fan-out initialisation.

    Args:
        in_channels, out_channels: of the convolution.
        kernel: odd; padded so that stride 1 keeps height and width.
        norm: see `make_norm`.
        stride: of the convolution.
        relu: end with a ReLU.
        of_boxes: see `make_norm`.
    """
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=norm == "none")
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    layers: list[nn.Module] = [conv, make_norm(norm, out_channels, of_boxes=of_boxes)]
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if relu else nn.Sequential(*layers)
