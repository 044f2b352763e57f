"""Predictions of one image, before fusion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from refine.structures.instances import Instances


@dataclass
class Prediction:
    """What the network says of one image, at that image's own size, before fusion.

    Attributes:
        instances: detections with `roi_masks`, boxes in pixels of the image.
        sem_seg: Tensor[H, W] int64, contiguous classes.
        sem_confidence: Tensor[H, W] float32, 0-1, softmax of the winning class.
        sem_probabilities: computes Tensor[C, H, W] float32, 0-1, of each class; 0 for those that the network does
            not predict. None where the logits are gone.
    """

    instances: Instances
    sem_seg: Tensor
    sem_confidence: Tensor
    sem_probabilities: Callable[[], Tensor] | None = None
