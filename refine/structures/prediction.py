"""Network predictions for one image, before fusion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from refine.structures.instances import Instances
from refine.structures.panoptic import PanopticResult


@dataclass
class Prediction:
    """Network predictions for one image of H x W pixels, at its original size and before fusion.

    Attributes:
        instances: detections, boxes and masks in pixels of the image.
        sem_seg: Tensor[H, W] int64, contiguous class.
        sem_confidence: Tensor[H, W] float32, 0-1, softmax probability of the class in `sem_seg`.
        sem_probabilities: function that computes Tensor[C, H, W] float32, 0-1, the probability of each class (0 for
            classes that the network does not predict), or None if the logits were discarded.
        scale: factor by which the image was resized for the network; far below 1, small objects may be missed.
        merge: the network's own rule instead of fusion: a function from the minimum score of a segment, 0-1, to
            the result; None if it has none.
    """

    instances: Instances
    sem_seg: Tensor
    sem_confidence: Tensor
    sem_probabilities: Callable[[], Tensor] | None = None
    scale: float = 1.0
    merge: Callable[[float], PanopticResult] | None = None
