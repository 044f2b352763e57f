"""The two projections of IBPP: ROI-Align (pixels to instances) and ROI-Flatten (instances to pixels)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from refine.ops.pixels import weighted_pixels
from refine.ops.vision import roi_align


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters of ROI-Align.

    Attributes:
        ratio: samples per bin and axis; 0 adapts to the box size.
        aligned: shift samples by half a pixel to the pixel centres, as detectron2 does; torchvision's own
            detectors are trained without the shift.
        canonical_size: side in pixels of a box that is pooled from P4.
    """

    ratio: int = 2
    aligned: bool = True
    canonical_size: float = 224.0


def to_rois(boxes: Sequence[Tensor]) -> Tensor:
    """Join the boxes of all images to Tensor[N, 5] of (image index, x1, y1, x2, y2)."""
    index = torch.cat([b.new_full((len(b), 1), n) for n, b in enumerate(boxes)])
    return torch.cat([index, torch.cat(list(boxes))], dim=1)


def assign_levels(boxes: Tensor, levels: int, canonical_size: float = 224.0, canonical_level: int = 2) -> Tensor:
    """Return the pyramid level of each box: floor(k0 + log2(sqrt(area) / 224)), FPN paper eq. 1.

    Args:
        boxes: Tensor[N, 4] float, x1, y1, x2, y2 in pixels.
        levels: number of levels; the finest (stride 4) is level 0.
        canonical_size: side in pixels of a box that is assigned to `canonical_level`.
        canonical_level: level k0, counted from the finest, so 2 is P4.

    Returns:
        Tensor[N] int64, 0..levels-1.
    """
    size = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).clamp(min=0).sqrt()
    level = torch.floor(canonical_level + torch.log2(size / canonical_size + 1e-8))
    return level.clamp(0, levels - 1).long()


def roi_align_levels(
    features: Sequence[Tensor],
    rois: Tensor,
    output_size: int,
    sampling: Sampling,
    strides: Sequence[int] = (4, 8, 16, 32),
) -> Tensor:
    """Apply ROI-Align to each box at the pyramid level that fits its size.

    Args:
        features: one Tensor[B, C, h, w] float per level, finest first.
        rois: Tensor[N, 5] float, image index and box in input pixels (see `to_rois`).
        output_size: number of bins per side.
        sampling: sampling parameters and canonical box size.
        strides: input pixels per feature pixel of each level.

    Returns:
        Tensor[N, C, output_size, output_size], in the order of `rois`.
    """
    if len(features) == 1:
        return align(features[0], rois, output_size, sampling, strides[0])
    level = assign_levels(rois[:, 1:], len(features), sampling.canonical_size)
    order = torch.argsort(level, stable=True)
    counts = (level == torch.arange(len(features), device=level.device)[:, None]).sum(1).tolist()
    parts = [
        align(feature, part, output_size, sampling, stride)
        for feature, part, stride in zip(features, rois[order].split(counts), strides, strict=True)
    ]
    return torch.cat(parts)[torch.argsort(order)]


def align(feature: Tensor, rois: Tensor, output_size: int, sampling: Sampling, stride: int) -> Tensor:
    """Apply ROI-Align to one map: Tensor[B, C, h, w], Tensor[N, 5] -> Tensor[N, C, output_size, output_size].

    The map may have half precision, but box coordinates never do: beyond 512, bf16 resolves only every fourth
    pixel.
    """
    if feature.dtype.itemsize < 4:
        return align(feature.float(), rois, output_size, sampling, stride).to(feature.dtype)
    channels_last = feature.is_contiguous(memory_format=torch.channels_last)
    if channels_last and feature.device.type == "cpu" and sampling.ratio > 0:
        return _align_whole_pixels(feature, rois, output_size, sampling.ratio, stride, sampling.aligned)
    rois = rois.to(feature.dtype)
    return roi_align(feature, rois, output_size, 1.0 / stride, sampling.ratio, sampling.aligned)


def _align_whole_pixels(
    feature: Tensor, rois: Tensor, output_size: int, sampling_ratio: int, stride: int, aligned: bool
) -> Tensor:
    """Compute `align` for maps in channels-last layout, ten times as fast as torchvision on a CPU.

    Each bin is a weighted sum of pixels.
    """
    _, channels, height, width = feature.shape
    corners = rois[:, 1:].to(feature.dtype) / stride - (0.5 if aligned else 0.0)
    x1, y1, x2, y2 = corners.unbind(1)
    if not aligned:  # torchvision then makes boxes at least one pixel wide
        x2, y2 = torch.maximum(x2, x1 + 1), torch.maximum(y2, y1 + 1)
    row, row_weight = _bin_samples(y1, y2, height, output_size, sampling_ratio)  # N × S × 2·ratio
    column, column_weight = _bin_samples(x1, x2, width, output_size, sampling_ratio)
    row = row + rois[:, 0].long().view(-1, 1, 1) * height
    pixel = row[:, :, None, :, None] * width + column[:, None, :, None, :]  # N × S × S × 2·ratio × 2·ratio
    weight = row_weight[:, :, None, :, None] * column_weight[:, None, :, None, :]
    bins = weighted_pixels(feature, _per_bin(pixel), _per_bin(weight))
    return bins.view(len(rois), output_size, output_size, channels).permute(0, 3, 1, 2)


def _per_bin(x: Tensor) -> Tensor:
    """Flatten N × S × S × 2·ratio × 2·ratio to N·S·S × 4·ratio²."""
    return x.flatten(0, 2).flatten(1)


def _bin_samples(low: Tensor, high: Tensor, length: int, bins: int, samples: int) -> tuple[Tensor, Tensor]:
    """Return the pixels and weights that make up the bins of an interval along one axis.

    Args:
        low, high: Tensor[N] float, interval in pixels; 0 is the centre of the first pixel.
        length: number of pixels along the axis.
        bins: number of bins in the interval.
        samples: number of samples per bin.

    Returns:
        Tensor[N, bins, 2·samples] int64, two pixels per sample, and their weights, which sum to one if no
        sample lies more than one pixel outside the map.
    """
    step = (torch.arange(bins * samples, device=low.device, dtype=low.dtype) + 0.5) / (bins * samples)
    position = low[:, None] + (high - low)[:, None] * step
    inside = (position >= -1) & (position <= length)
    position = torch.where(inside, position, 0).clamp(0, length - 1)
    first = position.long()
    fraction = position - first
    pixel = torch.stack([first, (first + 1).clamp(max=length - 1)], -1)
    weight = torch.stack([1 - fraction, fraction], -1) * inside[..., None] / samples
    shape = (len(low), bins, 2 * samples)
    return pixel.view(shape), weight.view(shape)


def _bilinear_rows(low: Tensor, high: Tensor, length: int, bins: int, stride: int) -> Tensor:
    """Return the weights that interpolate `bins` samples of an interval at a line of pixels.

    Args:
        low, high: Tensor[N] float, interval in input pixels.
        length: number of canvas pixels along the axis.
        bins: number of mask samples along the axis.
        stride: input pixels per canvas pixel.

    Returns:
        Tensor[N, length, bins]: row p holds the bilinear weights of the samples at the centre of canvas
        pixel p (align_corners=False, zeros outside), so that separable interpolation is a matrix product.
    """
    centre = (torch.arange(length, device=low.device, dtype=low.dtype) + 0.5) * stride
    position = (centre - low[:, None]) / (high - low).clamp(min=1)[:, None] * bins - 0.5  # N × length
    sample = torch.arange(bins, device=low.device, dtype=low.dtype)
    return (1 - (position[:, :, None] - sample).abs()).clamp(min=0)  # N × length × bins


def roi_flatten(
    masks: Tensor,
    rois: Tensor,
    labels: Tensor,
    scores: Tensor,
    canvas_size: tuple[int, int, int, int],
    stride: int = 4,
    reduce: Literal["max", "sum"] = "max",
) -> Tensor:
    """Paint instance masks on a canvas with one channel per thing class (equation 5).

    canvas[b, c] = max over the instances of image b and class c of score × mask, sampled bilinearly at the
    pixel centres inside the box and zero elsewhere. Interpolation is separable, so all N masks are sampled
    by two batched matrix products; the gradient of the maximum flows only to the winning instance.

    Args:
        masks: Tensor[N, M, M] float, mask probabilities, 0-1.
        rois: Tensor[N, 5] float, image index and box in input pixels.
        labels: Tensor[N] int64, thing class, 0..C-1.
        scores: Tensor[N] float, 0-1.
        canvas_size: (B, C, h, w).
        stride: input pixels per canvas pixel.
        reduce: "max", or "sum" clipped at 1.

    Returns:
        Tensor[B, C, h, w] of the masks' dtype.
    """
    batch, classes, height, width = canvas_size
    bins = masks.shape[-1]
    canvas = masks.new_zeros(batch * classes, height, width)
    if masks.shape[0] == 0:
        return canvas.view(canvas_size)
    boxes = rois[:, 1:].float()  # fp16 does not resolve single pixels of a large image
    rows = _bilinear_rows(boxes[:, 1], boxes[:, 3], height, bins, stride).to(masks.dtype)
    columns = _bilinear_rows(boxes[:, 0], boxes[:, 2], width, bins, stride).to(masks.dtype)
    weighted = masks * scores.to(masks.dtype)[:, None, None]
    painted = rows @ weighted @ columns.transpose(1, 2)  # N×h×M · N×M×M · N×M×w -> N×h×w
    channel = rois[:, 0].long() * classes + labels
    if reduce == "sum":
        return canvas.index_add(0, channel, painted).clamp(max=1).view(canvas_size)
    pixel_channel = channel[:, None].expand(-1, height * width)
    return canvas.flatten(1).scatter_reduce(0, pixel_channel, painted.flatten(1), "amax").view(canvas_size)
