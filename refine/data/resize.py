"""Resizing of images and maps, and the size at test time."""

from __future__ import annotations

import platform

import torch
import torch.nn.functional as F
from torch import Tensor


def fit_scale(size: tuple[int, int], short: int, long: int) -> float:
    """Return the factor that makes the short side `short` pixels long, but the long side at most `long`."""
    return min(short / min(size), long / max(size))


def network_size(size: tuple[int, int], short: int, long: int) -> tuple[int, int]:
    """Return (height, width) in pixels of the network input at test time for an image of `size`."""
    scale = fit_scale(size, short, long)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def resize_for_test(image: Tensor, short: int, long: int) -> Tensor:
    """Resize an image, Tensor[3, H, W] uint8, for the network at test time; see `fit_scale`."""
    return resize(image, network_size((image.shape[1], image.shape[2]), short, long))


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize an image bilinearly with antialiasing: Tensor[3, H, W] uint8 -> Tensor[3, *size] uint8.

    The same as `torchvision.transforms.v2.functional.resize`: in integers where PyTorch has fast code for them.
    """
    if tuple(image.shape[1:]) == tuple(size):
        return image
    # interpolate() keeps a channels-last layout only if the batch's stride shows it.
    batch = image.permute(1, 2, 0)[None].permute(0, 3, 1, 2) if image.stride(0) == 1 else image[None]
    if _INTEGERS and image.device.type == "cpu":
        return F.interpolate(batch, size, mode="bilinear", antialias=True)[0]
    return F.interpolate(batch.float(), size, mode="bilinear", antialias=True)[0].round_().to(torch.uint8)


_INTEGERS = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") or platform.machine() in (
    "aarch64",
    "arm64",
)


def resize_map(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps to the nearest pixel centre: Tensor[N, H, W] integer below 2^24 -> Tensor[N, *size]."""
    if tuple(maps.shape[1:]) == tuple(size):
        return maps
    if not len(maps):
        return maps.new_zeros(0, *size)
    return F.interpolate(maps[None].float(), size, mode="nearest-exact")[0].to(maps.dtype)
