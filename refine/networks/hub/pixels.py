"""Semantic maps of models of transformers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from refine.ops.semantic import resized_map, resized_probabilities
from refine.structures import Instances, Prediction


@dataclass(frozen=True)
class PixelScores:
    """Scores of the classes at low resolution; calling it computes `Prediction.sem_probabilities`.

    Attributes:
        maps: Tensor[C, h, w] float, logits if `softmax`, else scores of at least 0 that need not sum to 1.
        size: (height, width) of the image in pixels.
        softmax: how scores become probabilities, see `resized_map`.
    """

    maps: Tensor
    size: tuple[int, int]
    softmax: bool

    def __call__(self) -> Tensor:
        return resized_probabilities(self.maps, self.size, self.softmax)

    def best(self) -> tuple[Tensor, Tensor]:
        """Return the best class and its confidence: Tensor[H, W] int64 and Tensor[H, W] float, 0-1."""
        return resized_map(self.maps, self.size, self.softmax)

    def prediction(self, scale: float) -> Prediction:
        """Return a prediction without instances."""
        instances = Instances.empty(self.size, self.maps.device)
        return Prediction(instances, *self.best(), self, scale)


def of_patches(patches: Tensor, ranges: list[tuple[int, int]], size: tuple[int, int]) -> Tensor:
    """Average overlapping patches of one image along its long side.

    Args:
        patches: Tensor[P, C, h, w] float, of which h or w is the short side of the image.
        ranges: first pixel and pixel after the last of each patch along the long side.
        size: (height, width) of the whole image in pixels.

    Returns:
        Tensor[C, *size].
    """
    total, count = patches.new_zeros(patches.shape[1], *size), patches.new_zeros(size)
    for patch, (start, end) in zip(patches, ranges, strict=True):
        window = (slice(start, end), slice(None)) if size[0] > size[1] else (slice(None), slice(start, end))
        total[(slice(None), *window)] += patch
        count[window] += 1
    return total / count.clamp(min=1)
