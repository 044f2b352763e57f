"""Detections of a pretrained detector, instead of region proposals and box heads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refine.errors import RefineError
from refine.modeling.box_head import SampledBoxes
from refine.modeling.config import DetectorConfig
from refine.modeling.nanodet import (
    BGR_MEAN,
    BGR_STD,
    CHANNELS,
    NUM_CLASSES,
    STRIDES,
    NanoDet,
    NanoDetOutput,
    cells,
    decode,
)
from refine.ops.boxes import box_iou, clip_boxes, is_nonempty, nms
from refine.structures import ImageBatch, Instances, Targets

# Shape letters: B images, R cells of all levels, K thing classes of the model.

MULTIPLE = 32
"""Divisor of the heights and widths of the network's input."""


class Detector(nn.Module):
    """NanoDet-G on the images of the model, with its 80 classes mapped to the model's thing classes.

    The detector is frozen: it has no losses and returns detached tensors.

    Args:
        config: classes, thresholds and scale.
        num_things: number K of thing classes.
        pixel_mean, pixel_std, channels: normalisation and channel order of the model's images.

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
        self.channels = list(CHANNELS) if config.features else [0] * len(CHANNELS)
        # Images are (x - mean) / std; `gain` and `offset` convert them to the detector's normalisation.
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
    def forward(self, images: ImageBatch) -> NanoDetOutput:
        """Run the network; `detect` converts its output to detections, `maps` to features."""
        return self.network(self._input(images.tensor))

    def maps(self, output: NanoDetOutput, features: Sequence[Tensor]) -> list[Tensor]:
        """Return the detector's maps, each Tensor[B, C, h, w], resized to the backbone's maps `features`."""
        return [
            m if m.shape[-2:] == f.shape[-2:] else F.interpolate(m, f.shape[-2:], mode="bilinear")
            for m, f in zip(output.maps, features, strict=True)
        ]

    @torch.no_grad()
    def detect(self, images: ImageBatch, output: NanoDetOutput, min_score: float = 0.0) -> list[Instances]:
        """Return the detections of each image in its pixels, by decreasing score.

        The score of a thing class is the maximum over the detector's classes that are mapped to it. As in
        `BoxHeads.predict`, detections are thresholded, suppressed per class and clipped to the image.

        Args:
            images: batch of B images.
            output: result of `forward` for the images.
            min_score: minimum score of the detections, 0-1.
        """
        probabilities = torch.cat(output.classes, 1).float().sigmoid()  # B×R×80
        known = torch.nonzero(self.labels >= 0).squeeze(1)
        scores = probabilities.new_zeros(*probabilities.shape[:2], self.num_things)
        probabilities = probabilities[..., known]
        scores.scatter_reduce_(2, self.labels[known].expand_as(probabilities), probabilities, "amax")
        sides, places = torch.cat(output.sides, 1), cells(output.maps[1:])
        height, width = (n * STRIDES[0] for n in output.maps[1].shape[-2:])  # of the network's input
        whole = images.tensor.shape
        scale = places.new_tensor([whole[3] / width, whole[2] / height] * 2)
        found = []
        for of_cells, score, size in zip(sides, scores, images.sizes, strict=True):
            enough = (score > self.config.score_threshold) & (score >= min_score)
            row, label = torch.nonzero(enough, as_tuple=True)
            boxes = clip_boxes(decode(of_cells[row], places[row]) * scale, size)
            keep = nms(boxes, score[row, label], label, self.config.nms)
            keep = keep[is_nonempty(boxes[keep])][: self.config.max_detections]
            found.append(Instances(size, boxes[keep], score[row, label][keep], label[keep]))
        return found

    def _input(self, images: Tensor) -> Tensor:
        """Convert the model's input, Tensor[B, 3, H, W], to the detector's normalisation and size."""
        height, width = images.shape[-2:]
        size = [max(1, round(n * self.config.scale / MULTIPLE)) * MULTIPLE for n in (height, width)]
        x = images.float().flip(1) if self.reverse else images.float()
        x = x * self.gain + self.offset
        if size != [height, width]:
            x = F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)
        return x

    @torch.no_grad()
    def sample(
        self, detections: Sequence[Instances], targets: Sequence[Targets]
    ) -> tuple[list[SampledBoxes], list[Tensor], list[Instances]]:
        """Return the training samples of the heads: detections and true boxes.

        A detection is positive if its IoU with a true box of its class is at least `positive_iou`.

        Args:
            detections: detections of each image.
            targets: ground truth of the images; crowd regions are not matched.

        Returns:
            positives: positive detections per image, followed by the true boxes.
            scores: scores of the positives, Tensor[n] per image; 0 for true boxes, which are not painted on the
                canvas, because at test it has detections alone.
            false positives: all other detections, per image.
        """
        positives, scores, false = [], [], []
        for found, target in zip(detections, targets, strict=True):
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
            f"got {config.labels or 'none, meaning COCO’s 80 things'}; list them in the order of COCO's ids"
        )
    return labels
