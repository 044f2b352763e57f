"""Spatial ranking module (SRM; OANet), which predicts one score per instance for the order of pasting."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refine.modeling.per_class import PerClassConv2d
from refine.modeling.spans import span
from refine.ops.distributed import mean_over_processes
from refine.ops.masks import paste_masks
from refine.structures import Instances, Targets

# Shape letters: N instances, K thing classes, H × W pixels.

AT_ONCE = 16
"""Number of full masks that are resized together, which limits the memory."""


class SpatialRanking(nn.Module):
    """Module that predicts, from the masks alone, the visible class where masks of several classes overlap.

    A canvas of one binary channel per thing class passes a 1×7 and a 7×1 convolution. The score of an instance is
    the mean probability of its class over its pixels that a mask of another class covers, and 0 without such
    pixels, as in BCC-Net. Instances of one class are not distinguished.

    Args:
        num_things: number K of thing classes.
    """

    def __init__(self, num_things: int) -> None:
        super().__init__()
        self.num_things = num_things
        self.horizontal = PerClassConv2d(num_things, num_things, (1, 7), padding=(0, 3))
        self.vertical = PerClassConv2d(num_things, num_things, (7, 1), padding=(3, 0))

    def forward(self, canvas: Tensor) -> Tensor:
        """Compute class logits of each pixel, Tensor[K, H, W], from the canvas, Tensor[K, H, W] float, 0 or 1."""
        return self.vertical(self.horizontal(canvas[None]))[0]

    def canvas(self, masks: Tensor, labels: Tensor) -> Tensor:
        """Return the union of the masks of each class, Tensor[K, H, W] float: masks [N, H, W] bool, labels [N]."""
        canvas = self.horizontal.weight.new_zeros(self.num_things, *masks.shape[1:])
        return canvas.index_add_(0, labels, masks.to(canvas.dtype)).clamp_(max=1)

    @torch.no_grad()
    def predict(self, instances: Instances, size: tuple[int, int] | None = None) -> Tensor:
        """Compute the ranking scores that `refine.fuse(ranking=…)` takes.

        Args:
            instances: N instances with `masks` or `roi_masks`.
            size: (height, width) in pixels of the resized image, on which the module with its kernels of 7 pixels
                is trained; masks are resized to it. None if they have this size already.

        Returns:
            Tensor[N] float32, 0-1.
        """
        if not len(instances):
            return instances.scores.new_zeros(0, dtype=torch.float32)
        with span("ranking"):
            masks = _masks(instances, size)
            canvas = self.canvas(masks, instances.labels)
            seen = canvas.sum(0) > 1
            probability = self(canvas).float().softmax(0)[:, seen]  # K × contested pixels
            contested = masks[:, seen].float()
            total = (contested @ probability.T).gather(1, instances.labels[:, None])[:, 0]
            return total / contested.sum(1).clamp(min=1)


def ranking_loss(head: SpatialRanking, instances: Sequence[Instances], targets: Sequence[Targets]) -> Tensor:
    """Return the mean cross-entropy to the thing class of the panoptic ground truth over contested pixels.

    Args:
        head: ranking module to train.
        instances: detections of each image, in pixels of its targets.
        targets: ground truth of each image.

    Returns:
        Scalar; 0 with a graph if masks of different classes overlap nowhere.
    """
    total = torch.stack([parameter.sum() * 0 for parameter in head.parameters()]).sum()
    pixels = torch.zeros((), device=total.device)
    for image, truth in zip(instances, targets, strict=True):
        if not len(image):
            continue
        canvas = head.canvas(_masks(image), image.labels)
        seen = (canvas.sum(0) > 1) & (truth.sem_seg >= 0) & (truth.sem_seg < head.num_things)
        logits = head(canvas).float()[:, seen].T  # pixels × K
        total = total + F.cross_entropy(logits, truth.sem_seg[seen], reduction="sum")
        pixels = pixels + seen.sum()
    return total / mean_over_processes(pixels)


def _masks(instances: Instances, size: tuple[int, int] | None = None) -> Tensor:
    """Return the masks, resized to `size` if given: Tensor[N, H, W] bool."""
    own = instances.image_size
    size = size or own
    runs, masks = instances.runs, instances.masks
    if runs is None and masks is None:
        assert instances.roi_masks is not None, "fusion rejects instances without masks"
        scale = instances.boxes.new_tensor([size[1] / own[1], size[0] / own[0]] * 2)
        return paste_masks(instances.roi_masks.float(), instances.boxes * scale, size)
    resized = [instances.boxes.new_zeros(0, *size, dtype=torch.bool)]
    for first in range(0, len(instances), AT_ONCE):
        some = slice(first, first + AT_ONCE)
        if runs is not None:
            part = runs[some].dense()
        else:
            assert masks is not None
            part = masks[some]
        if size != own:
            part = F.interpolate(part[None].float(), size, mode="bilinear", antialias=True)[0] >= 0.5
        resized.append(part)
    return torch.cat(resized)
