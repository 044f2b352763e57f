"""Region proposal network on P2..P6, as in detectron2's Faster R-CNN."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refine.errors import RefineError
from refine.modeling.config import RPNConfig
from refine.modeling.sampling import match, sample
from refine.ops.boxes import clip_boxes, decode_boxes, encode_boxes, is_nonempty, nms
from refine.ops.distributed import mean_over_processes
from refine.structures import Targets

# Shape letters: B images, L levels, A anchors per cell, R_l anchors of a level, R of all levels.

WEIGHTS = (1.0, 1.0, 1.0, 1.0)


@dataclass
class RPNOutput:
    """Raw outputs of the proposal network.

    Attributes:
        objectness: logits, Tensor[B, R_l] per level, cells row by row, the anchors of a cell together.
        deltas: box deltas, Tensor[B, R_l, 4] per level.
        anchors: anchor boxes in pixels, Tensor[R_l, 4] per level.
    """

    objectness: list[Tensor]
    deltas: list[Tensor]
    anchors: list[Tensor]


class RegionProposals(nn.Module):
    """Region proposal network: 3×3 convolutions, then objectness and box deltas for each anchor.

    Anchors are centred on multiples of the stride (offset 0); see `RPNConfig.torchvision_anchors`.

    Args:
        config: anchors, thresholds and numbers of proposals.
        channels: number of FPN channels.
        strides: strides of the FPN levels in pixels.

    Raises:
        RefineError: the number of anchor sizes differs from that of the levels.
    """

    cells: Tensor

    def __init__(self, config: RPNConfig, channels: int, strides: Sequence[int] = (4, 8, 16, 32, 64)) -> None:
        super().__init__()
        if len(config.anchor_sizes) != len(strides):
            raise RefineError(
                f"rpn.anchor_sizes: expected {len(strides)} sizes, one per level, got {config.anchor_sizes}"
            )
        self.config = config
        self.strides = tuple(strides)
        count = len(config.aspect_ratios)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.further = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1) for _ in range(config.num_convs - 1)
        )
        self.objectness = nn.Conv2d(channels, count, 1)
        self.deltas = nn.Conv2d(channels, 4 * count, 1)
        for layer in (self.conv, *self.further, self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.register_buffer("cells", _cell_anchors(config), persistent=False)

    def forward(self, features: Sequence[Tensor]) -> RPNOutput:
        """Compute logits, deltas and anchors from feature maps, Tensor[B, C, h_l, w_l] per level."""
        objectness, deltas, anchors = [], [], []
        for x, cell, stride in zip(features, self.cells, self.strides, strict=True):
            hidden = F.relu(self.conv(x), inplace=True)
            for conv in self.further:
                hidden = F.relu(conv(hidden), inplace=True)
            objectness.append(self.objectness(hidden).permute(0, 2, 3, 1).flatten(1))  # B×h×w×A -> B×R_l
            d = self.deltas(hidden).permute(0, 2, 3, 1)  # B×h×w×4A
            deltas.append(d.reshape(len(d), -1, 4))  # B×R_l×4
            anchors.append(_place(cell, x.shape[-2], x.shape[-1], *self._spacing(x, features[0], stride)))
        return RPNOutput(objectness, deltas, anchors)

    def _spacing(self, x: Tensor, finest: Tensor, stride: int) -> tuple[int, int]:
        """Return the distance in pixels between neighbouring cells of the map `x`, down and across."""
        if not self.config.torchvision_anchors:
            return stride, stride
        height, width = (n * self.strides[0] for n in finest.shape[-2:])  # of the padded image
        return height // x.shape[-2], width // x.shape[-1]

    def propose(self, output: RPNOutput, image_sizes: Sequence[tuple[int, int]], training: bool) -> list[Tensor]:
        """Return the best boxes of each image after NMS within each level.

        Anchors with their centre in the padding are left out: padding has features of its own, and the boxes there,
        which end up empty, would take the places of others among the best of a level.

        Args:
            output: result of `forward`.
            image_sizes: (height, width) of the unpadded images in pixels.
            training: whether to keep the number of proposals for training or for test.

        Returns:
            Tensor[K, 4] per image in pixels, by decreasing objectness, detached.
        """
        return [boxes for boxes, _ in self.propose_scored(output, image_sizes, training)]

    @torch.no_grad()
    def propose_scored(
        self, output: RPNOutput, image_sizes: Sequence[tuple[int, int]], training: bool
    ) -> list[tuple[Tensor, Tensor]]:
        """Return the boxes of `propose` with their logits, (Tensor[K, 4], Tensor[K]) per image."""
        before = self.config.pre_nms_top_n[0 if training else 1]
        after = self.config.post_nms_top_n[0 if training else 1]
        boxes, logits, levels = [], [], []
        sizes: Sequence[int] | Tensor = image_sizes[0]
        if len(set(image_sizes)) > 1:  # else a copy would only make a GPU wait
            sizes = output.anchors[0].new_tensor(image_sizes).T[..., None]  # 2×B×1
        for n, (objectness, deltas, anchors) in enumerate(
            zip(output.objectness, output.deltas, output.anchors, strict=True)
        ):
            inside = is_inside(anchors, sizes)  # R_l or B×R_l
            objectness = objectness.float().masked_fill(~inside, -torch.inf)
            best, index = objectness.topk(min(before, objectness.shape[1]), dim=1)  # B×k
            selected = deltas.gather(1, index[..., None].expand(-1, -1, 4))
            decoded = decode_boxes(selected.flatten(0, 1), anchors[index].flatten(0, 1), WEIGHTS)
            boxes.append(decoded.view(*index.shape, 4))
            logits.append(best)
            levels.append(torch.full_like(index[0], n))
        all_boxes, all_logits, level = torch.cat(boxes, 1), torch.cat(logits, 1), torch.cat(levels)
        proposals = []
        for image_boxes, image_logits, size in zip(all_boxes, all_logits, image_sizes, strict=True):
            clipped = clip_boxes(image_boxes, size)  # infinite boxes become empty, as do those outside
            valid = torch.nonzero(is_nonempty(clipped) & image_logits.isfinite()).squeeze(1)
            clipped, image_logits = clipped[valid], image_logits[valid]
            keep = nms(clipped, image_logits, level[valid], self.config.nms)[:after]
            proposals.append((clipped[keep], image_logits[keep]))
        return proposals

    def losses(self, output: RPNOutput, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Compute the objectness (binary cross-entropy) and box (L1) losses of a random sample of anchors.

        Both are sums divided by `config.samples` × B, even if an image has fewer anchors to sample.

        Args:
            output: result of `forward`.
            targets: ground truth of the images; for crowd regions see `match`.

        Returns:
            `loss_rpn_objectness` and `loss_rpn_box`, scalars.
        """
        anchors = torch.cat(output.anchors)
        # The anchors of image n have the indices n R .. (n + 1) R - 1.
        positives, negatives, box_targets = [], [], []
        for n, target in enumerate(targets):
            labels, matched = match(
                anchors, target, self.config.negative_iou, self.config.positive_iou, rescue=True
            )
            positive, negative = sample(labels, self.config.samples, self.config.positive_fraction)
            positives.append(positive + n * len(anchors))
            negatives.append(negative + n * len(anchors))
            box_targets.append(encode_boxes(anchors[positive], target.boxes[matched[positive]], WEIGHTS))
        positive, negative = torch.cat(positives), torch.cat(negatives)
        objectness = torch.cat(output.objectness, 1).flatten()[torch.cat([positive, negative])].float()
        truth = torch.zeros_like(objectness)
        truth[: len(positive)] = 1
        moved = torch.cat(output.deltas, 1).flatten(0, 1)[positive].float()
        count = torch.full((), float(self.config.samples * len(targets)), device=anchors.device)
        count = mean_over_processes(count)
        return {
            "loss_rpn_objectness": F.binary_cross_entropy_with_logits(objectness, truth, reduction="sum") / count,
            "loss_rpn_box": F.l1_loss(moved, torch.cat(box_targets), reduction="sum") / count,
        }


def is_inside(anchors: Tensor, size: Sequence[int] | Tensor) -> Tensor:
    """Return which anchors are centred inside an image of `size` (height, width).

    Args:
        anchors: Tensor[R, 4] in pixels.
        size: two numbers or Tensor[2], or Tensor[2, B, 1] for B images.

    Returns:
        Tensor[R] or Tensor[B, R] bool.
    """
    x1, y1, x2, y2 = anchors.unbind(1)
    return ((x1 + x2) / 2 < size[1]) & ((y1 + y2) / 2 < size[0])


def _cell_anchors(config: RPNConfig) -> Tensor:
    """Return boxes centred at 0 with area size² and aspect ratios (height over width), Tensor[L, A, 4]."""
    # On the device "meta", torch.stack would import torch._dynamo, for seconds.
    size = torch.tensor(config.anchor_sizes, device="cpu")[:, None]
    ratio = torch.tensor(config.aspect_ratios, device="cpu").sqrt()
    half = torch.stack([size / ratio, size * ratio], -1) / 2  # L×A×2 as (x, y)
    anchors = torch.cat([-half, half], -1)
    return (anchors.round() if config.torchvision_anchors else anchors).to(torch.get_default_device())


def _place(cell: Tensor, height: int, width: int, down: int, across: int) -> Tensor:
    """Place the anchors Tensor[A, 4] at every cell of a map: Tensor[height · width · A, 4]."""
    y = torch.arange(height, device=cell.device) * down
    x = torch.arange(width, device=cell.device) * across
    y, x = torch.meshgrid(y, x, indexing="ij")
    centre = torch.stack([x, y, x, y], -1)[:, :, None]  # h×w×1×4
    return (centre + cell).flatten(0, 2)
