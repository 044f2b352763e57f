"""U-Net with watershed, as in most entries to the 2018 Data Science Bowl: a baseline for `nuclei.py`.

The network classifies pixels as background, inside or rim of a nucleus. The insides of touching nuclei are
separate, so that each becomes a marker, from which a watershed covers the foreground.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from skimage.measure import label
from skimage.segmentation import watershed
from torch import Tensor, nn

from refine.data.loader import PanopticDataset
from refine.data.resize import resize_for_test, resize_map
from refine.data.segments import SegmentMap
from refine.evaluation.pq import PanopticQuality
from refine.inference.drawings import to_result
from refine.modeling.backbones import build_backbone
from refine.modeling.config import ModelConfig
from refine.modeling.norms import conv_norm
from refine.modeling.semantic_head import pad_labels
from refine.structures import VOID, Categories, ImageBatch, PanopticResult, Targets

BACKGROUND, INSIDE, RIM = range(3)

CLASS_WEIGHTS = (1.0, 1.0, 10.0)
"""Class weights of the loss, as in the code of Caicedo et al. 2019 (Cytometry A 95:952): rims are thin."""

WIDTHS = (128, 96, 64, 32, 16)
"""Numbers of channels of the decoder at strides 16, 8, 4, 2 and 1."""


class UNet(nn.Module):
    """U-Net with skip connections from the backbone at strides 4 to 32 and from the image at strides 2 and 1.

    It has the methods `image_batch` and `loss` of `PanopticModel`, for the same training.

    Args:
        config: config whose backbone, pixel mean and standard deviation, divisor and memory layout are used.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    class_weights: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.divisor = config.divisor
        self.backbone = build_backbone(config.backbone)
        *skips, below = self.backbone.channels
        self.levels = nn.ModuleList()
        for skip, width in zip([*reversed(skips), 3, 3], WIDTHS, strict=True):
            convs = [conv_norm(below + skip, width, norm="bn"), conv_norm(width, width, norm="bn")]
            self.levels.append(nn.Sequential(*convs))
            below = width
        self.classifier = nn.Conv2d(below, 3, 1)
        for name, values in (
            ("pixel_mean", config.pixel_mean),
            ("pixel_std", config.pixel_std),
            ("class_weights", CLASS_WEIGHTS),
        ):
            self.register_buffer(name, torch.tensor(values), persistent=False)
        if config.channels_last:
            self.to(memory_format=torch.channels_last)

    def image_batch(self, images: Sequence[Tensor]) -> ImageBatch:
        """Normalise and pad images, each Tensor[3, h, w] uint8 RGB, to a batch on the model's device."""
        moved = [image.to(self.pixel_mean.device) for image in images]
        return ImageBatch.from_images(moved, self.pixel_mean, self.pixel_std, self.divisor)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits, Tensor[B, 3, H, W], of normalised images, Tensor[B, 3, H, W]."""
        *skips, below = self.backbone(x)
        for skip, level in zip([*reversed(skips), F.avg_pool2d(x, 2), x], self.levels, strict=True):
            below = level(torch.cat([F.interpolate(below, size=skip.shape[-2:], mode="nearest"), skip], 1))
        return self.classifier(below)

    def loss(self, images: ImageBatch, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Return the weighted cross-entropy over the labelled pixels."""
        size = (images.tensor.shape[-2], images.tensor.shape[-1])
        labels = pad_labels([rims(t.owner, t.sem_seg == VOID) for t in targets], size)
        return {"loss_pixels": F.cross_entropy(self(images.tensor), labels, self.class_weights, ignore_index=VOID)}

    @torch.inference_mode()
    def probabilities(self, image: Tensor, test_size: tuple[int, int]) -> np.ndarray:
        """Return class probabilities, [3, h, w], of Tensor[3, H, W] uint8 resized to `test_size` (short, long)."""
        batch = self.image_batch([resize_for_test(image, *test_size)])
        height, width = batch.sizes[0]
        return self(batch.tensor)[0, :, :height, :width].float().softmax(0).cpu().numpy()


def rims(owner: Tensor, void: Tensor) -> Tensor:
    """Return the class of each pixel.

    The rim consists of the pixels of a nucleus within one step (in eight directions) of background and within two
    steps of another nucleus. Inside and rim together are the whole nuclei; the image border is not a rim.

    Args:
        owner: Tensor[H, W] int64, index of the nucleus of each pixel, -1 for none.
        void: Tensor[H, W] bool, pixels without a label.

    Returns:
        Tensor[H, W] int64, BACKGROUND, INSIDE, RIM or VOID.
    """
    nucleus = owner >= 0
    number = owner.float()[None]
    own = torch.where(nucleus, number, -number.new_tensor(torch.inf))
    # Maximum and minimum of the numbers nearby: both equal a pixel's own number unless another nucleus is near.
    near_other = _dilate(own, 2) > number
    near_other |= _dilate(torch.where(nucleus, -number, own), 2) > -number
    rim = (near_other | (_dilate((~nucleus)[None].float(), 1) > 0))[0] & nucleus
    labels = torch.where(rim, RIM, torch.where(nucleus, INSIDE, BACKGROUND))
    return torch.where(void, VOID, labels)


def _dilate(values: Tensor, radius: int) -> Tensor:
    """Return the largest value within `radius` steps: Tensor[1, H, W] → Tensor[1, H, W]."""
    return F.max_pool2d(values, 2 * radius + 1, stride=1, padding=radius)


@dataclass(frozen=True)
class Watershed:
    """Conversion of probabilities to instances.

    Attributes:
        foreground: minimum probability of inside and rim together, 0-1.
        marker: minimum probability of inside, 0-1; each connected component of such pixels is one nucleus.
        smallest: minimum number of pixels of a marker.
    """

    foreground: float
    marker: float
    smallest: int

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """Segment probabilities, [3, H, W] float, 0-1: [H, W] int32, number of the nucleus, 0 for background."""
        inside, mask = probabilities[INSIDE], 1 - probabilities[BACKGROUND] >= self.foreground
        markers = label(mask & (inside >= self.marker), connectivity=1)
        markers[np.bincount(markers.ravel())[markers] < self.smallest] = 0
        return watershed(-inside, markers, mask=mask).astype(np.int32)


GRID = [
    Watershed(*values)
    for values in product((0.45, 0.6, 0.75, 0.9, 0.95, 0.98), (0.3, 0.5, 0.7, 0.85, 0.95), (8, 32))
]
"""Settings that `tune` tries."""


def tune(model: UNet, dataset: PanopticDataset, test_size: tuple[int, int]) -> Watershed:
    """Return the setting in `GRID` with the highest PQ on held-out images."""
    qualities = [PanopticQuality(dataset.categories) for _ in GRID]
    for n in range(len(dataset)):
        image, segments = dataset[n]
        truth, probabilities = to_result(segments, dataset.categories), model.probabilities(image, test_size)
        for setting, quality in zip(GRID, qualities, strict=True):
            result = to_panoptic(setting(probabilities), truth.segment_ids.shape, dataset.categories)
            quality.update(
                truth.segment_ids.numpy(), truth.segments, result.segment_ids.numpy(), result.segments, image_id=n
            )
    scores = [quality.compute().group()["pq"] for quality in qualities]
    return GRID[int(np.argmax(scores))]


def to_panoptic(numbers: np.ndarray, size: Sequence[int], categories: Categories) -> PanopticResult:
    """Convert nuclei and background to a panoptic result.

    Args:
        numbers: [h, w] int32, number of the nucleus, 0 for background.
        size: (H, W) of the result, resized by nearest neighbour.
        categories: one thing class, then one stuff class.
    """
    index = resize_map(torch.from_numpy(numbers)[None], (size[0], size[1]))[0] - 1
    count = int(numbers.max(initial=0))
    labels = torch.tensor([0] * count + [1])
    background = torch.where(index < 0, count, index)
    return to_result(SegmentMap(background, labels, torch.zeros(count + 1, dtype=torch.bool)), categories)
