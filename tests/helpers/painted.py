"""A network that reads its predictions from the colours of the image, and scenes painted for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from refine.fusion import FusionConfig
from refine.networks.network import Network
from refine.structures import Instances, Prediction
from refine.structures.targets import mask_boxes
from tests.helpers.scenes import CATEGORIES, STUFF, THINGS


class PaintedNetwork(Network):
    """Sees exactly what a window shows, so windows agree with the whole image but for what they cut off.

    Red and green hold the numbers of the objects of two layers, 0 for none; blue holds stuff and its confidence.
    """

    categories, device, test_size, max_detections = CATEGORIES, torch.device("cpu"), None, None

    def __init__(self, method: str = "heuristic", **fusion) -> None:
        self.method = method
        self.fusion = FusionConfig(**({"score_threshold": 0.0, "stuff_area": 30} | fusion))

    def predict(self, images: Sequence[Tensor], min_score: float = 0.0) -> list[Prediction]:
        return [self._predict(image) for image in images]

    def _predict(self, image: Tensor) -> Prediction:
        size = (image.shape[1], image.shape[2])
        seen = [(layer, n) for layer in (0, 1) for n in torch.unique(image[layer]).tolist() if n]
        masks = torch.stack([image[layer] == n for layer, n in seen]) if seen else torch.zeros(0, *size, dtype=bool)
        number = torch.tensor([256 * layer + n for layer, n in seen])
        instances = Instances(
            size, mask_boxes(masks), scores=number * 0.37 % 1, labels=number.long() % THINGS, masks=masks
        )
        return Prediction(instances, THINGS + image[2].long() % STUFF, 1 - image[2] / 512.0)

    def fusion_heads(self):
        def occlusion(instances: Instances, pairs: Tensor) -> Tensor:
            claim = instances.scores * 7.3 % 1
            return (claim[:, None] - claim[None] + 1) / 2

        return {"occlusion": occlusion, "ranking": lambda instances: instances.scores * 5.1 % 1}


def painted(seed: int, size: tuple[int, int], count: int, largest: float) -> Tensor:
    """Paint rectangles and ellipses with sides up to `largest` pixels: Tensor[3, H, W] uint8."""
    rng = np.random.default_rng(seed)
    image = np.zeros((3, *size), np.uint8)
    y, x = np.mgrid[: size[0], : size[1]]
    image[2] = (x // 9 + y // 7 * 5) * 37 % 256
    for n in range(1, count + 1):
        cy, cx = rng.uniform(0, size)
        ry, rx = rng.uniform(1, largest / 2, 2)
        if rng.random() < 0.5:
            inside = (abs(y - cy) <= ry) & (abs(x - cx) <= rx)
        else:
            inside = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1
        layer = image[n % 2]
        if not layer[inside].any():  # objects of one layer leave each other whole
            layer[inside] = n
    return torch.from_numpy(image)
