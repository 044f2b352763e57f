"""Detections of a ready-made detector, in the place of region proposals and box heads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refine.errors import RefineError
from refine.modeling.box_head import SampledBoxes
from refine.modeling.config import DetectorConfig
from refine.modeling.nanodet import BGR_MEAN, BGR_STD, NUM_CLASSES, STRIDES, NanoDet, decode
from refine.ops.boxes import box_iou, clip_boxes, is_nonempty, nms
from refine.structures import ImageBatch, Instances, Targets

# Shape letters: B images, R cells of all levels, K thing classes of the model.

MULTIPLE = 32
"""Heights and widths that the network takes are multiples of it."""


class Detector(nn.Module):
    """NanoDet-G on the images of the model, with its 80 classes mapped to the model's things.

    It is frozen: it has no losses, its weights never change, and no gradient leaves it.

    Args:
        config: classes, thresholds and scale.
        num_things: K.
        pixel_mean, pixel_std, channels: with which the model's images are normalised.

    Raises:
        RefineError: `config.labels` is not one index 0..K-1, or -1, per class of the detector.
    """

    gain: Tensor
    offset: Tensor
    labels: Tensor

    def __init__(
        self,
        config: DetectorConfig,
        num_things: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        channels: str,
    ) -> None:
        super().__init__()
        self.config = config
        self.num_things = num_things
        self.network = NanoDet().requires_grad_(False)
        # Images arrive as (x - mean) / std; `gain` and `offset` give the detector's own normalisation.
        mean, std = torch.tensor([list(pixel_mean), list(pixel_std)])
        self.reverse = channels == "RGB"
        if self.reverse:
            mean, std = mean.flip(0), std.flip(0)
        bgr_mean, bgr_std = torch.tensor(BGR_MEAN), torch.tensor(BGR_STD)
        self.register_buffer("gain", (std / bgr_std).view(3, 1, 1), persistent=False)
        self.register_buffer("offset", ((mean - bgr_mean) / bgr_std).view(3, 1, 1), persistent=False)
        self.register_buffer("labels", torch.tensor(_labels(config, num_things)), persistent=False)

    def train(self, mode: bool = True) -> Detector:
        """Stay in evaluation mode: the detector is frozen."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: ImageBatch) -> list[Instances]:
        """Detections of each image, by falling score, in its pixels.

        The score of a thing class is the highest of the detector's classes that are mapped to it. Boxes are
        thresholded, suppressed per class and clipped to the image, as `BoxHeads.predict` does.
        """
        x, scale = self._input(images.tensor)
        logits, sides = self.network(x)
        shapes = [(x.shape[2] // stride, x.shape[3] // stride) for stride in STRIDES]
        boxes = decode(sides, shapes) * scale
        probabilities = torch.cat(logits, 1).float().sigmoid()  # B×R×80
        known = torch.nonzero(self.labels >= 0).squeeze(1)
        scores = probabilities.new_zeros(*probabilities.shape[:2], self.num_things)
        probabilities = probabilities[..., known]
        scores.scatter_reduce_(2, self.labels[known].expand_as(probabilities), probabilities, "amax")
        return [self._detect(b, s, size) for b, s, size in zip(boxes, scores, images.sizes, strict=True)]

    def _input(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The network's input, and Tensor[4] that brings its boxes back to pixels of `images`."""
        height, width = images.shape[-2:]
        size = [max(1, round(n * self.config.scale / MULTIPLE)) * MULTIPLE for n in (height, width)]
        x = images.float().flip(1) if self.reverse else images.float()
        x = x * self.gain + self.offset
        if size != [height, width]:
            x = F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)
        return x, x.new_tensor([width / size[1], height / size[0]] * 2)

    def _detect(self, boxes: Tensor, scores: Tensor, size: tuple[int, int]) -> Instances:
        """Tensor[R, 4], Tensor[R, K] -> the best `max_detections` after NMS."""
        row, label = torch.nonzero(scores > self.config.score_threshold, as_tuple=True)
        boxes, scores = clip_boxes(boxes[row], size), scores[row, label]
        keep = nms(boxes, scores, label, self.config.nms)[: self.config.max_detections]
        keep = keep[is_nonempty(boxes[keep])]
        return Instances(size, boxes[keep], scores[keep], label[keep])

    @torch.no_grad()
    def sample(
        self, images: ImageBatch, targets: Sequence[Targets]
    ) -> tuple[list[SampledBoxes], list[Tensor], list[Instances]]:
        """What the heads learn from: the detections, with their errors, and the true boxes.

        A detection is positive if it overlaps a true box of its own class by `positive_iou`.

        Args:
            images: B images.
            targets: of the same images; crowd regions are matched to nothing.

        Returns:
            positives: per image, with the true boxes at the end.
            scores: Tensor[n] per image, of the positives. A true box has 0: it is not painted on a canvas,
                where at test there are detections alone.
            false positives: per image, all other detections.
        """
        positives, scores, false = [], [], []
        for found, target in zip(self(images), targets, strict=True):
            true = torch.nonzero(~target.iscrowd).squeeze(1)
            best, matched = found.scores.new_zeros(len(found)), torch.zeros_like(found.labels)
            if len(true):
                iou = box_iou(target.boxes[true], found.boxes)
                iou = torch.where(target.labels[true][:, None] == found.labels, iou, 0)
                best, index = iou.max(0)
                matched = true[index]
            positive = best >= self.config.positive_iou
            shown = torch.cat([matched[positive], true])
            boxes = torch.cat([found.boxes[positive], target.boxes[true]])
            positives.append(SampledBoxes(boxes, target.labels[shown], shown, self.num_things))
            scores.append(torch.cat([found.scores[positive], found.scores.new_zeros(len(true))]))
            false.append(found[~positive])
        return positives, scores, false


def _labels(config: DetectorConfig, num_things: int) -> list[int]:
    labels = config.labels or list(range(NUM_CLASSES))
    if len(labels) != NUM_CLASSES or not all(-1 <= n < num_things for n in labels):
        raise RefineError(
            f"detector.labels: expected {NUM_CLASSES} indices of the {num_things} thing classes (-1 for none), "
            f"got {config.labels or 'none, which means COCO’s 80 things'}; list them in the order of COCO's ids"
        )
    return labels
