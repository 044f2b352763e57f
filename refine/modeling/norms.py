"""Norm layers by name, and the convolution block of all heads."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refine.modeling.config import Norm
from refine.structures import ImageBatch

M = TypeVar("M", bound=Callable[..., Any])
_PADDED: ContextVar[ImageBatch | None] = ContextVar("padded", default=None)
_SHARED: ContextVar[SharedStatistics | None] = ContextVar("shared", default=None)


@contextmanager
def valid_pixels(images: ImageBatch) -> Iterator[None]:
    """Let `by_image` exclude the padding of a batch inside the context."""
    token = _PADDED.set(images)
    try:
        yield
    finally:
        _PADDED.reset(token)


def over_valid_pixels(method: M) -> M:
    """Decorate a method whose first argument is an ImageBatch to run within its `valid_pixels`."""

    @functools.wraps(method)
    def wrapped(self: Any, images: ImageBatch, *arguments: Any, **options: Any) -> Any:
        with valid_pixels(images):
            return method(self, images, *arguments, **options)

    return cast(M, wrapped)


def by_image(x: Tensor, op: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply `op` to each image without its padding, inside `valid_pixels`; padding becomes zero.

    A following convolution then has the same input beyond the border of an image with and without padding.

    Args:
        x: map of the batch, Tensor[B, C, h, w].
        op: function that keeps height and width, or multiplies both by an integer.
    """
    images, (rows, columns) = _PADDED.get(), x.shape[-2:]
    if images is None:
        return op(x)
    height, width = images.tensor.shape[-2:]
    valid = [(-(-h * rows // height), -(-w * columns // width)) for h, w in images.sizes]
    if all(size == (rows, columns) for size in valid):
        return op(x)
    # split(1) has one gradient for all images; each x[n : n + 1] would have one of the size of the batch
    parts = [op(image[:, :, :h, :w]) for image, (h, w) in zip(x.split(1), valid, strict=True)]
    scale = parts[0].shape[2] // valid[0][0]
    padded = [F.pad(p, (0, scale * columns - p.shape[3], 0, scale * rows - p.shape[2])) for p in parts]
    return torch.cat(padded) if len(padded) > 1 else padded[0]  # of one image it would be a copy


class SharedStatistics:
    """Statistics of the GroupNorms of image maps, measured on some images and then used for all.

    A large image that is predicted in parts has other statistics in each part than as a whole, which would show as
    seams. Statistics are stored per layer and call, because IBPP may apply one layer several times.

        statistics = SharedStatistics()
        for _ in range(2):
            with statistics.measured():
                network(one_part), network(another_part)
        with statistics.applied():
            network(another_part)

    The first time, each batch is normalised by its own statistics, so deeper layers do not have the statistics of a
    whole; the second time, by those of the first. With one part per batch in the first, larger ones in the second
    change nothing.
    """

    def __init__(self) -> None:
        self.counted: Sequence[tuple[float, float, float, float]] | None = None
        """Part of each of the next images that is measured: (top, left, bottom, right) as fractions of its sides;
        None stands for whole images."""
        self._moments: dict[nn.GroupNorm, list[tuple[Tensor, Tensor]]] = {}  # results of `_moments_of`
        self._sums: dict[nn.GroupNorm, list[Tensor]] | None = None  # of values, squares and ones, Tensor[3, G]
        self._batch: ImageBatch | None = None
        self._calls: Counter[nn.Module] = Counter()

    def __bool__(self) -> bool:
        """Return whether anything was measured: not for networks without such layers."""
        return bool(self._moments)

    def reset(self) -> None:
        """Forget what was measured."""
        self._moments = {}

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Measure the statistics over all images inside the context; those of one batch have one size."""
        self._sums = {}
        try:
            with self.applied():
                yield
            self._moments = {layer: [_moments_of(layer, s) for s in calls] for layer, calls in self._sums.items()}
        finally:
            self._sums = None

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Use the measured statistics inside the context; a call that was not measured uses those of its images."""
        self._batch, token = None, _SHARED.set(self)
        try:
            yield
        finally:
            _SHARED.reset(token)

    def of_call(self, layer: nn.GroupNorm, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return mean and variance of each channel for the next call of a layer, Tensor[C] each, or None."""
        images = _PADDED.get()
        if images is None:
            return None
        if images is not self._batch:
            self._batch, self._calls = images, Counter()
        number, known = self._calls[layer], self._moments.get(layer, [])
        self._calls[layer] += 1
        moments = known[number] if number < len(known) else None
        if self._sums is not None:
            sums = self._sum(x, images, layer.num_groups)
            calls = self._sums.setdefault(layer, [])
            if number < len(calls):
                calls[number] += sums
            else:
                calls.append(sums)
            moments = _moments_of(layer, sums) if moments is None else moments
        return moments

    def _sum(self, x: Tensor, images: ImageBatch, groups: int) -> Tensor:
        """Sum values, squares and ones of each group over what is counted of the images: Tensor[3, groups]."""
        (rows, columns), (height, width) = x.shape[-2:], images.tensor.shape[-2:]
        h, w = images.sizes[0]
        sides = [-(-h * rows // height), -(-w * columns // width)] * 2
        sums = []
        for image, counted in zip(x, self.counted or [(0.0, 0.0, 1.0, 1.0)] * len(x), strict=True):
            top, left, bottom, right = (round(part * side) for part, side in zip(counted, sides, strict=True))
            part = image[:, top : max(bottom, top + 1), left : max(right, left + 1)]
            values = part.double().unflatten(0, (groups, -1)).flatten(1)
            ones = torch.full_like(values[:, 0], values.shape[1])
            sums.append(torch.stack([values.sum(1), values.square().sum(1), ones]))
        return torch.stack(sums).sum(0)


def _moments_of(layer: nn.GroupNorm, sums: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of each channel, Tensor[C] each, from the sums of each group, Tensor[3, G]."""
    mean, square = sums[:2] / sums[2:]
    repeats = layer.num_channels // layer.num_groups
    both = torch.stack([mean, (square - mean.square()).clamp(min=0)]).repeat_interleave(repeats, 1)
    mean, variance = both.to(layer.weight)
    return mean, variance


class ImageGroupNorm(nn.GroupNorm):
    """GroupNorm of image maps, whose statistics exclude the padding (see `by_image`), or are shared by images."""

    def forward(self, x: Tensor) -> Tensor:
        shared = _SHARED.get()
        moments = None if shared is None else shared.of_call(self, x)
        if moments is None:
            return by_image(x, super().forward)
        mean, variance = moments
        return by_image(x, lambda part: F.batch_norm(part, mean, variance, self.weight, self.bias, eps=self.eps))


class FrozenBatchNorm(nn.Module):
    """BatchNorm with fixed statistics and affine parameters, as torchvision's FrozenBatchNorm2d.

    Args:
        channels: number of channels.
        eps: value added to the variance.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        state_dict.pop(f"{prefix}num_batches_tracked", None)  # of a trained BatchNorm
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}"

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            scale = self.weight * torch.rsqrt(self.running_var + self.eps)
            offset = self.bias - self.running_mean * scale
            return x * scale[:, None, None] + offset[:, None, None]
        # without a gradient, one pass over the map instead of two
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class BoxGroupNorm(nn.GroupNorm):
    """GroupNorm for the small maps of boxes.

    PyTorch's CPU kernel for half precision in channels-last is slow, so the input is made contiguous: GroupNorm and
    the following convolution then take a third to nine tenths of the time (`benchmarks/group_norm.py`).
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and x.dtype.itemsize < 4:
            x = x.contiguous()
        return super().forward(x)


def make_norm(name: Norm, channels: int, eps: float = 1e-5, of_boxes: bool = False) -> nn.Module:
    """Build a norm layer.

    Args:
        name: kind of norm. GroupNorm has 32 groups, as in the paper, or the largest smaller number that divides the
            channels.
        channels: number of channels.
        eps: value added to the variance.
        of_boxes: whether the maps are those of boxes, which have no padding.
    """
    match name:
        case "gn":
            groups = next(g for g in range(min(32, channels), 0, -1) if channels % g == 0)
            return (BoxGroupNorm if of_boxes else ImageGroupNorm)(groups, channels, eps)
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
    """Build a convolution with norm and ReLU, a bias only without a norm, and Kaiming fan-out initialisation.

    Args:
        in_channels, out_channels: numbers of channels of the convolution.
        kernel: odd kernel size; padded so that stride 1 keeps height and width.
        norm: norm; see `make_norm`.
        stride: stride of the convolution.
        relu: whether to end with a ReLU.
        of_boxes: whether the maps are those of boxes; see `make_norm`.
    """
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=norm == "none")
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    layers: list[nn.Module] = [conv, make_norm(norm, out_channels, of_boxes=of_boxes)]
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if relu else nn.Sequential(*layers)
