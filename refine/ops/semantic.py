"""From semantic logits at stride 4 to a label and a confidence for every pixel of the image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BAND = 128
"""Rows of the output computed at a time: bounds the memory of the full-size logits."""


def semantic_map(
    logits: Tensor, image_size: tuple[int, int], output_size: tuple[int, int], stride: int = 4
) -> tuple[Tensor, Tensor]:
    """Upsample logits, take the best class and its softmax probability.

    Logits go ×`stride` (bilinear, align_corners=False), padding is cut off, and what is left is resized
    to the output (bilinear), where its size differs: as detectron2 does.

    Args:
        logits: Tensor[L, h, w], of a padded network input of h·stride × w·stride pixels.
        image_size: (height, width) of the unpadded network input.
        output_size: (height, width) wanted.
        stride: input pixels per logit.

    Returns:
        labels: Tensor[output_size] int64, 0..L-1.
        confidence: Tensor[output_size] float32, 0-1.
    """
    full = F.interpolate(logits[None].float(), scale_factor=stride, mode="bilinear", align_corners=False)
    full = full[..., : image_size[0], : image_size[1]]
    if image_size != output_size:
        full = F.interpolate(full, size=output_size, mode="bilinear", align_corners=False)
    best, labels = full[0].max(0)
    confidence = torch.exp(best - full[0].logsumexp(0))
    return labels, confidence
