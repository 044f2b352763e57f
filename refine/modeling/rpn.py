"""Region proposals on P2..P6, as detectron2's Faster R-CNN has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_iou

from refine.modeling.config import RPNConfig
from refine.ops.boxes import clip_boxes, decode_boxes, encode_boxes, intersection_over_area, is_nonempty
from refine.ops.distributed import mean_over_processes
from refine.structures import Targets

# Shape suffixes: B images, A anchors per cell, R anchors of all levels of one image.

WEIGHTS = (1.0, 1.0, 1.0, 1.0)


@dataclass
class RPNOutput:
    """Raw answers of the proposal network.

    Attributes:
        objectness: Tensor[B, R_l] logits per level, cells row by row, anchors of a cell together.
        deltas: Tensor[B, R_l, 4] per level.
        anchors: Tensor[R_l, 4] per level, in pixels.
    """

    objectness: list[Tensor]
    deltas: list[Tensor]
    anchors: list[Tensor]


class RegionProposals(nn.Module):
    """A 3×3 convolution, then objectness and box deltas for each anchor.

    Anchors are centred on multiples of the stride (offset 0) and not rounded, unlike torchvision's.

    Args:
        config: anchors, thresholds and counts.
        channels: of the pyramid.
        strides: of its levels.
    """

    def __init__(self, config: RPNConfig, channels: int, strides: Sequence[int] = (4, 8, 16, 32, 64)) -> None:
        super().__init__()
        if len(config.anchor_sizes) != len(strides):
            raise ValueError(f"rpn.anchor_sizes: expected {len(strides)} sizes, one per level P2..P6")
        self.config = config
        self.strides = tuple(strides)
        count = len(config.aspect_ratios)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.objectness = nn.Conv2d(channels, count, 1)
        self.deltas = nn.Conv2d(channels, 4 * count, 1)
        for layer in (self.conv, self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, features: Sequence[Tensor]) -> RPNOutput:
        """Tensor[B, C, h_l, w_l] per level -> logits, deltas and anchors."""
        objectness, deltas, anchors = [], [], []
        for x, size, stride in zip(features, self.config.anchor_sizes, self.strides, strict=True):
            hidden = F.relu(self.conv(x))
            objectness.append(self.objectness(hidden).permute(0, 2, 3, 1).flatten(1))  # B×h×w×A -> B×R_l
            d = self.deltas(hidden).permute(0, 2, 3, 1)  # B×h×w×4A
            deltas.append(d.reshape(len(d), -1, 4))
            anchors.append(self._anchors(x.shape[-2], x.shape[-1], size, stride, x.device))
        return RPNOutput(objectness, deltas, anchors)

    def _anchors(self, height: int, width: int, size: float, stride: int, device: torch.device) -> Tensor:
        """Tensor[h·w·A, 4]: boxes of area size² and the aspect ratios (height over width) at each cell."""
        ratio = torch.tensor(self.config.aspect_ratios, device=device)
        half = torch.stack([size / ratio.sqrt(), size * ratio.sqrt()], 1) / 2  # A×2 as (x, y)
        y = torch.arange(height, device=device) * float(stride)
        x = torch.arange(width, device=device) * float(stride)
        centre = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)[:, :, None]  # h×w×1×2
        return torch.cat([centre - half, centre + half], -1).view(-1, 4)

    @torch.no_grad()
    def propose(
        self, output: RPNOutput, image_sizes: Sequence[tuple[int, int]], training: bool
    ) -> list[Tensor]:
        """The best boxes of each image after NMS within each level.

        Args:
            output: of `forward`.
            image_sizes: (height, width) of the unpadded images.
            training: keep as many as training wants, or as test does.

        Returns:
            Tensor[K, 4] per image in pixels, by falling objectness.
        """
        before = self.config.pre_nms_top_n[0 if training else 1]
        after = self.config.post_nms_top_n[0 if training else 1]
        boxes, logits, levels = [], [], []
        for n, (objectness, deltas, anchors) in enumerate(
            zip(output.objectness, output.deltas, output.anchors, strict=True)
        ):
            best, index = objectness.float().topk(min(before, objectness.shape[1]), dim=1)  # B×k
            chosen = deltas.gather(1, index[..., None].expand(-1, -1, 4))
            decoded = decode_boxes(chosen.flatten(0, 1), anchors[index].flatten(0, 1), WEIGHTS)
            boxes.append(decoded.view(*index.shape, 4))
            logits.append(best)
            levels.append(torch.full_like(index[0], n))
        all_boxes, all_logits, level = torch.cat(boxes, 1), torch.cat(logits, 1), torch.cat(levels)
        proposals = []
        for image_boxes, image_logits, size in zip(all_boxes, all_logits, image_sizes, strict=True):
            image_boxes = clip_boxes(image_boxes, size)
            valid = is_nonempty(image_boxes) & image_boxes.isfinite().all(1) & image_logits.isfinite()
            image_boxes, image_logits = image_boxes[valid], image_logits[valid]
            keep = batched_nms(image_boxes, image_logits, level[valid], self.config.nms)[:after]
            proposals.append(image_boxes[keep])
        return proposals

    def losses(self, output: RPNOutput, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Objectness (binary cross-entropy) and box (L1) losses of a random sample of anchors.

        Anchors whose larger part lies in a crowd region are left out.

        Args:
            output: of `forward`.
            targets: of the same images.

        Returns:
            `loss_rpn_cls` and `loss_rpn_box`, both over the number of anchors drawn.
        """
        anchors = torch.cat(output.anchors)
        objectness = torch.cat(output.objectness, 1).float()  # B×R
        deltas = torch.cat(output.deltas, 1).float()  # B×R×4
        loss_cls, loss_box, count = objectness.sum() * 0, deltas.sum() * 0, 0
        for image_objectness, image_deltas, target in zip(objectness, deltas, targets, strict=True):
            labels, matched = self._match(anchors, target)
            positive, negative = sample(labels, self.config.samples, self.config.positive_fraction)
            chosen = torch.cat([positive, negative])
            truth = (labels[chosen] == 1).float()
            loss_cls = loss_cls + F.binary_cross_entropy_with_logits(
                image_objectness[chosen], truth, reduction="sum"
            )
            if len(target):
                wanted = encode_boxes(anchors[positive], target.boxes[matched[positive]], WEIGHTS)
                loss_box = loss_box + (image_deltas[positive] - wanted).abs().sum()
            count += len(chosen)
        normaliser = mean_over_processes(torch.tensor(float(count), device=anchors.device))
        return {"loss_rpn_cls": loss_cls / normaliser, "loss_rpn_box": loss_box / normaliser}

    def _match(self, anchors: Tensor, target: Targets) -> tuple[Tensor, Tensor]:
        """Labels (1 positive, 0 negative, -1 neither) and the matched instance of each anchor."""
        labels = anchors.new_full((len(anchors),), -1, dtype=torch.int64)
        boxes = target.boxes[~target.iscrowd]
        if len(boxes) == 0:
            labels.zero_()
            matched = torch.zeros_like(labels)
        else:
            iou = box_iou(boxes, anchors)  # G×R
            best, index = iou.max(0)
            labels[best < self.config.negative_iou] = 0
            labels[best >= self.config.positive_iou] = 1
            # Every object gets its best anchors, however poor.
            labels[((iou == iou.max(1, keepdim=True).values) & (iou > 0)).any(0)] = 1
            matched = torch.nonzero(~target.iscrowd).squeeze(1)[index]
        if bool(target.iscrowd.any()):
            in_crowd = intersection_over_area(anchors, target.boxes[target.iscrowd]).amax(1) > 0.5
            labels[in_crowd & (labels == 0)] = -1
        return labels, matched


def sample(labels: Tensor, count: int, positive_fraction: float) -> tuple[Tensor, Tensor]:
    """Draw at random.

    Args:
        labels: Tensor[R] int64: above 0 positive, 0 negative, below 0 neither.
        count: how many in all, at most.
        positive_fraction: at most this share of `count` is positive.

    Returns:
        Indices of the positives and of the negatives drawn.
    """
    positive = torch.nonzero(labels > 0).squeeze(1)
    negative = torch.nonzero(labels == 0).squeeze(1)
    num_positive = min(len(positive), int(count * positive_fraction))
    num_negative = min(len(negative), count - num_positive)
    positive = positive[torch.randperm(len(positive), device=labels.device)[:num_positive]]
    negative = negative[torch.randperm(len(negative), device=labels.device)[:num_negative]]
    return positive, negative
