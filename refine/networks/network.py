"""Protocol of networks that `Predictor` can use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from refine.errors import RefineError
from refine.fusion.config import AnyMethod, FusionConfig, Head
from refine.structures import Categories, Prediction


@runtime_checkable
class Network(Protocol):
    """Anything that predicts instances and a semantic map before fusion: one network, or several combined.

    `Predictor` accepts any object with these members. A subclass inherits the methods that have a default.

    Attributes:
        categories: categories of the predictions.
        device: device of the network and of its predictions.
        method, fusion: fusion rule and thresholds that suit the network; the rule is "model" if, and only if, its
            predictions can be merged in the network's own way.
        test_size: (short, long) side in pixels that images are resized to, keeping their aspect ratio, which may
            be assigned; None if the network resizes images in another way.
        max_detections: maximum number of instances per image; None if there is none.
    """

    categories: Categories
    device: torch.device
    method: AnyMethod
    fusion: FusionConfig
    test_size: tuple[int, int] | None
    max_detections: int | None

    def predict(self, images: Sequence[Tensor], min_score: float = 0.0) -> list[Prediction]:
        """Predict images.

        Args:
            images: images of any sizes and on any device, each Tensor[3, H, W] uint8 RGB.
            min_score: minimum score of the instances that the caller uses, 0-1; others may be left out.

        Returns:
            One prediction per image, in the same order, at the size of the image and on `device`.

        Raises:
            RefineError: the network computed values that are not finite.
        """
        ...

    def digest(self) -> str:
        """Return a hexadecimal digest of the weights and of what else the predictions depend on."""
        ...

    def fusion_heads(self) -> dict[Head, Any]:
        """Return the arguments `occlusion` and `ranking` of `refine.fuse` that the network has heads for."""
        return {}

    def limit_detections(self, most: int) -> None:
        """Set `max_detections`.

        Raises:
            RefineError: the maximum is fixed.
        """
        raise RefineError(f"--max-detections {most}: the number of objects of this model is fixed; leave it out")


def check_probabilities(networks: Iterable[Network], fix: str) -> None:
    """Raise RefineError if the predictions of some networks lack `sem_probabilities`.

    Args:
        networks: networks whose probabilities are needed; those that never have any name their files in an
            attribute `without_probabilities`.
        fix: what needs the probabilities, and what to do.
    """
    files = [name for network in networks for name in getattr(network, "without_probabilities", ())]
    if files:
        raise RefineError(f"{', '.join(dict.fromkeys(files))}: has no probabilities of all classes, which {fix}")
