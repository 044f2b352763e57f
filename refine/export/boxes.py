"""Proposals and detections of one image, with numbers of boxes that only the image determines.

The same functions as `RegionProposals.propose`, `BoxHeads.predict` and `Detector.detect`, for one image, without
Python decisions that depend on the numbers of boxes. A last detection of score -1 always follows, so that no tensor
is empty, which not every runtime supports.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import nms, roi_align

from refine.modeling.box_head import BoxHeads
from refine.modeling.detector import Detector
from refine.modeling.nanodet import NUM_CLASSES, NanoDetOutput, cells, decode
from refine.modeling.rpn import WEIGHTS, RegionProposals, is_inside
from refine.ops.boxes import decode_boxes, is_nonempty
from refine.ops.roi import Sampling, assign_levels


@dataclass
class Detections:
    """N detections by decreasing score; the last one may be artificial, of score -1.

    Attributes:
        boxes: Tensor[N, 4] in pixels of the network input.
        scores: Tensor[N], 0-1, or -1.
        labels: Tensor[N] int64, thing class.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def __getitem__(self, index: Tensor) -> Detections:
        return Detections(self.boxes[index], self.scores[index], self.labels[index])


def propose(rpn: RegionProposals, pyramid: Sequence[Tensor], size: Tensor) -> Tensor:
    """Return the proposals of `RegionProposals.propose`, Tensor[K, 4], K at least 1.

    Args:
        rpn: proposal network.
        pyramid: P2..P6, each Tensor[1, C, h, w].
        size: (height, width) of the unpadded image in pixels, Tensor[2] int64.
    """
    output = rpn(pyramid)
    before, after = rpn.config.pre_nms_top_n[1], rpn.config.post_nms_top_n[1]
    boxes, logits = [], []
    for objectness, deltas, anchors in zip(output.objectness, output.deltas, output.anchors, strict=True):
        inside = objectness[0].masked_fill(~is_inside(anchors, size), -torch.inf)
        padded = torch.cat([inside, objectness.new_full((before,), -torch.inf)])
        best, index = padded.topk(before)
        kept = index[best.isfinite()]
        decoded = clip(decode_boxes(deltas[0, kept], anchors[kept], WEIGHTS), size)
        valid = _indices(is_nonempty(decoded))
        decoded, scores = decoded[valid], objectness[0, kept][valid]
        keep = nms(decoded, scores, rpn.config.nms)
        boxes.append(decoded[keep])
        logits.append(scores[keep])
    order = torch.argsort(torch.cat(logits), descending=True)[:after]
    return torch.cat([torch.cat(boxes)[order], torch.tensor([[0.0, 0.0, 1.0, 1.0]])])


def classify(heads: BoxHeads, pyramid: Sequence[Tensor], proposals: Tensor, size: Tensor) -> Detections:
    """Return the detections of `BoxHeads.predict`; arguments as in `propose`."""
    boxes, total = proposals, None
    for stage, head in enumerate(heads.stages):
        if stage > 0:
            boxes = clip(boxes, size)
        pooled = pool_levels(pyramid, boxes, heads.config.pool_size, heads.sampling)
        logits, deltas = head(pooled)
        scores = logits.softmax(1)
        total = scores if total is None else total + scores
        boxes = decode_boxes(deltas, boxes, heads.weights(stage))
    assert total is not None
    scores = (total / len(heads.stages))[:-1, :-1]  # without the last, artificial proposal, and the background
    boxes = clip(boxes[:-1], size).unflatten(1, (-1, 4)).expand(-1, heads.num_things, -1)
    config = heads.config
    return _detections(boxes, scores, config.score_threshold, config.nms, config.max_detections)


def detect(detector: Detector, output: NanoDetOutput, size: Tensor) -> Detections:
    """Return the detections of `Detector.detect` at scale 1."""
    probabilities = torch.cat(output.classes, 1)[0].sigmoid()  # R×80
    things, columns = detector.config.labels or list(range(NUM_CLASSES)), []
    for thing in range(detector.num_things):
        own = [n for n, label in enumerate(things) if label == thing]
        columns.append(probabilities[:, own].amax(1) if own else torch.zeros_like(probabilities[:, 0]))
    scores = torch.stack(columns, 1)
    sides, places = torch.cat(output.sides, 1)[0], cells(output.maps[1:])
    boxes = clip(decode(sides, places), size)[:, None].expand(-1, detector.num_things, -1)
    config = detector.config
    return _detections(boxes, scores, config.score_threshold, config.nms, config.max_detections)


def _detections(boxes: Tensor, scores: Tensor, least: float, iou: float, most: int) -> Detections:
    """Apply score threshold, NMS per class and `most` to boxes [n, K, 4] and scores [n, K]."""
    row, label = torch.nonzero(scores > least, as_tuple=True)
    boxes, scores = boxes[row, label], scores[row, label]
    keep = _suppress(boxes, scores, label, iou)
    keep = keep[_indices(is_nonempty(boxes[keep]))][:most]
    return Detections(
        torch.cat([boxes[keep], boxes.new_tensor([[0.0, 0.0, 1.0, 1.0]])]),
        torch.cat([scores[keep], scores.new_full((1,), -1.0)]),
        torch.cat([label[keep], label.new_zeros(1)]),
    )


def _suppress(boxes: Tensor, scores: Tensor, groups: Tensor, iou: float) -> Tensor:
    """Apply NMS within each group, as `refine.ops.boxes.nms`."""
    # Boxes of different groups are moved apart; one that lies apart from all keeps the maximum defined.
    apart = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max() + 1
    return nms(boxes + (groups.to(boxes) * apart)[:, None], scores, iou)


def clip(boxes: Tensor, size: Tensor) -> Tensor:
    """Clip boxes Tensor[..., 4 k] to an image of `size` (height, width), Tensor[2] int64."""
    limits = size.flip(0).to(boxes).expand(2, 2).flatten()  # width, height, width, height
    parts = boxes.unflatten(-1, (-1, 4)).clamp(min=0)
    return torch.minimum(parts, limits).flatten(-2)


def pool_levels(pyramid: Sequence[Tensor], boxes: Tensor, bins: int, sampling: Sampling) -> Tensor:
    """Return `roi_align_levels` of one image: maps Tensor[1, C, h, w], boxes Tensor[N, 4]."""
    level = assign_levels(boxes, len(pyramid), sampling.canonical_size)
    rois = to_rois(boxes)
    parts, indices = [], []
    for n, feature in enumerate(pyramid):
        on_level = _indices(level == n)
        indices.append(on_level)
        parts.append(pool(feature, rois[on_level], bins, sampling, 4 << n))
    order = torch.argsort(torch.cat(indices))
    return torch.cat(parts)[order]


def pool(feature: Tensor, rois: Tensor, bins: int, sampling: Sampling, stride: int) -> Tensor:
    """Return `refine.ops.roi.align` by torchvision's operator, which becomes ONNX's RoiAlign."""
    return roi_align(feature, rois, bins, 1.0 / stride, sampling.ratio, aligned=sampling.aligned)


def to_rois(boxes: Tensor) -> Tensor:
    """Put the image index 0 before boxes Tensor[N, 4]: Tensor[N, 5]."""
    return torch.cat([torch.zeros_like(boxes[:, :1]), boxes], 1)


def _indices(mask: Tensor) -> Tensor:
    """Return the indices of the true elements of Tensor[n] bool."""
    return torch.nonzero(mask).squeeze(1)
