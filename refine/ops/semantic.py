"""Conversion of semantic logits at stride 4 to a label and a confidence per image pixel."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from refine.ops.upsample import labels_and_confidence_x4

CPU_LOGITS = 2**17
"""Full-size logits computed at a time on a CPU, which stay in its cache."""

GPU_LOGITS = 2**24
"""Full-size logits computed at a time elsewhere: 64 MiB, enough to occupy a GPU."""


@dataclass(frozen=True)
class Grid:
    """Place of the pixels of a network's input in the output, which may be a part of a larger image.

    Attributes:
        step: (y, x) distance of neighbouring input pixels in pixels of the output.
        origin: (y, x) corner of the first input pixel in pixels of the output.
    """

    step: tuple[float, float]
    origin: tuple[float, float] = (0.0, 0.0)


def semantic_map(
    logits: Tensor,
    image_size: tuple[int, int],
    output_size: tuple[int, int],
    stride: int = 4,
    grid: Grid | None = None,
) -> tuple[Tensor, Tensor]:
    """Upsample logits and return the best class and its softmax probability.

    Logits are upsampled by `stride` (bilinear, align_corners=False), cropped to the unpadded image and, if the
    sizes differ, resized to the output (bilinear), as in detectron2. (BCC-Net instead resizes the labels to the
    nearest pixel after Unknown Erasing, which here runs at the output size.)

    Args:
        logits: Tensor[L, h, w] float, for a padded network input of h·stride × w·stride pixels.
        image_size: (height, width) of the unpadded network input in pixels.
        output_size: (height, width) of the result in pixels.
        stride: input pixels per logit.
        grid: place of the input in the output; None stands for an input that fills the output.

    Returns:
        labels: Tensor[output_size] int64, 0..L-1, the lowest index in case of a tie.
        confidence: Tensor[output_size] float32, 0-1.
    """
    logits = logits.detach().float()
    if stride == 4 and grid is None and tuple(image_size) == tuple(output_size) and logits.device.type == "cpu":
        return labels_and_confidence_x4(logits, image_size)
    vertical, horizontal = _weights(logits, image_size, output_size, stride, grid)
    return _best(logits, vertical, horizontal, lambda best, part: 1 / part.sub_(best).exp_().sum(0))


def resized_map(scores: Tensor, output_size: tuple[int, int], softmax: bool) -> tuple[Tensor, Tensor]:
    """Resize maps of classes (bilinear, align_corners=False), and return the best class and its confidence.

    Args:
        scores: Tensor[L, h, w] float, logits, or scores of at least 0 that need not sum to 1.
        output_size: (height, width) of the result in pixels.
        softmax: whether the confidence is the softmax probability; else it is the score, divided by the sum of
            all scores of the pixel where that is above 1.

    Returns:
        labels: Tensor[output_size] int64, 0..L-1, the lowest index in case of a tie.
        confidence: Tensor[output_size] float32, 0-1.
    """
    vertical, horizontal = (_resizing(scores, axis, size) for axis, size in zip((1, 2), output_size, strict=True))
    if softmax:
        return _best(scores, vertical, horizontal, lambda best, part: 1 / part.sub_(best).exp_().sum(0))
    return _best(scores, vertical, horizontal, lambda best, part: best / part.sum(0).clamp(min=1))


def resized_probabilities(scores: Tensor, output_size: tuple[int, int], softmax: bool) -> Tensor:
    """Return the confidence of each class, Tensor[L, *output_size]; arguments as in `resized_map`."""
    vertical, horizontal = (_resizing(scores, axis, size) for axis, size in zip((1, 2), output_size, strict=True))
    resized = vertical.T @ scores @ horizontal
    return resized.softmax(0) if softmax else resized / resized.sum(0).clamp(min=1)


def _best(
    logits: Tensor, vertical: Tensor, horizontal: Tensor, confidence_of: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Interpolate maps and return the best channel and its confidence, a block of pixels at a time.

    Args:
        logits: Tensor[L, h, w] float.
        vertical, horizontal: Tensor[h, H] and Tensor[w, W], weights of the interpolation.
        confidence_of: function of the best value and all values, Tensor[...] and Tensor[L, ...], which it may
            overwrite.
    """
    height, width = vertical.shape[1], horizontal.shape[1]
    side = _side(len(logits), CPU_LOGITS if logits.device.type == "cpu" else GPU_LOGITS)
    labels = torch.empty(height, width, dtype=torch.int64, device=logits.device)
    confidence = torch.empty(height, width, device=logits.device)
    row_ranges, column_ranges = _supports(vertical, side), _supports(horizontal, side)
    for y, top, bottom in row_ranges:
        rows = vertical[top:bottom, y : y + side].T @ logits[:, top:bottom]  # L × side × w
        for x, left, right in column_ranges:
            part = rows[:, :, left:right] @ horizontal[left:right, x : x + side]  # L × side × side
            best, label = part.max(0)
            labels[y : y + side, x : x + side] = label
            confidence[y : y + side, x : x + side] = confidence_of(best, part)
    return labels, confidence


def _side(classes: int, logits: int) -> int:
    """Return the side of the square blocks of so many logits, an odd number.

    With a power of two, all classes of a pixel would share few places of a CPU's cache.
    """
    return max(math.isqrt(logits // classes), 16) | 1


def semantic_probabilities(
    logits: Tensor,
    image_size: tuple[int, int],
    output_size: tuple[int, int],
    stride: int = 4,
    grid: Grid | None = None,
) -> Tensor:
    """Return the probability of each class: Tensor[L, *output_size] float32; arguments as in `semantic_map`."""
    logits = logits.detach().float()
    vertical, horizontal = _weights(logits, image_size, output_size, stride, grid)
    return (vertical.T @ logits @ horizontal).softmax(0)


def _weights(
    logits: Tensor, image_size: tuple[int, int], output_size: tuple[int, int], stride: int, grid: Grid | None
) -> list[Tensor]:
    """Return both interpolations along y and along x as one matrix each, Tensor[logits, output]."""
    matrices = []
    for axis, (image, output) in enumerate(zip(image_size, output_size, strict=True)):
        samples = torch.eye(logits.shape[axis + 1], device=logits.device)[None]
        full = F.interpolate(samples, scale_factor=stride, mode="linear", align_corners=False)[..., :image]
        if grid is not None:
            full = _interpolate(full, output, grid.step[axis], grid.origin[axis])
        elif image != output:
            full = F.interpolate(full, size=output, mode="linear", align_corners=False)
        matrices.append(full[0])
    return matrices


def _interpolate(rows: Tensor, count: int, step: float, origin: float) -> Tensor:
    """Interpolate Tensor[..., n] linearly at `count` places, those of a `Grid` along one axis.

    For rows that fill the places this is `F.interpolate` with align_corners=False.
    """
    places = (torch.arange(count, dtype=torch.float64) + 0.5 - origin) / step - 0.5
    places = places.clamp(0, rows.shape[-1] - 1).to(rows)
    low = places.long()
    part, high = places - low, (low + 1).clamp(max=rows.shape[-1] - 1)
    return rows[..., low] * (1 - part) + rows[..., high] * part


def _resizing(maps: Tensor, axis: int, output: int) -> Tensor:
    """Return the interpolation along one axis as a matrix: Tensor[maps.shape[axis], output]."""
    samples = torch.eye(maps.shape[axis], device=maps.device)[None]
    return F.interpolate(samples, size=output, mode="linear", align_corners=False)[0]


def _supports(weights: Tensor, step: int) -> list[tuple[int, int, int]]:
    """Return the rows with non-zero weights for each `step` columns: first column, first row, row after the last.

    On a GPU this waits once, not once per block.
    """
    used = (weights != 0).byte()
    first, after = torch.stack([used.argmax(0), len(used) - used.flip(0).argmax(0)]).tolist()
    return [(n, min(first[n : n + step]), max(after[n : n + step])) for n in range(0, len(first), step)]
