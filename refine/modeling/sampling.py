"""Matching of boxes to instances, and sampling of boxes for a loss."""

from __future__ import annotations

import torch
from torch import Tensor

from refine.ops.boxes import box_iou, intersection_over_area
from refine.structures import VOID, Targets

CROWD_SHARE = 0.5
"""A box with a larger fraction of its area in the box of a crowd region is not background."""

VOID_SHARE = 0.5
"""A box with a larger fraction of void pixels is not background either; evaluation ignores such predictions too."""


def match(
    boxes: Tensor, target: Targets, negative_iou: float, positive_iou: float, rescue: bool = False
) -> tuple[Tensor, Tensor]:
    """Match each box to the instance that it overlaps most.

    Crowd regions are not matched. A box that would be background but lies mostly in a crowd region or on void is
    neither positive nor negative, because it may contain objects without annotation.

    Args:
        boxes: Tensor[N, 4] in pixels.
        target: ground truth with G instances, including crowd regions.
        negative_iou: boxes with a best IoU below this are negative.
        positive_iou: boxes with a best IoU of at least this are positive; those in between are neither.
        rescue: whether the boxes that overlap an instance most are positive even if the IoU is lower. As in
            detectron2, they are matched to the instance that *they* overlap most, which may be another one.

    Returns:
        labels: Tensor[N] int64, 1 for positive, 0 for negative, -1 for neither.
        matched: Tensor[N] int64, index of the instance in `target`; undefined unless positive.
    """
    labels = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    matched = torch.zeros_like(labels)
    candidates = torch.nonzero(~target.iscrowd).squeeze(1)
    if len(candidates) and len(boxes):
        iou = box_iou(target.boxes[candidates], boxes)  # G×N
        best, index = iou.max(0)
        matched = candidates[index]
        labels = (best >= positive_iou).long() - ((best >= negative_iou) & (best < positive_iou)).long()
        if rescue:
            most = iou.max(1, keepdim=True).values
            labels[((iou == most) & (most > 0)).any(0)] = 1
    crowd = target.boxes[target.iscrowd]
    if len(crowd) and len(boxes):
        inside = intersection_over_area(boxes, crowd).amax(1) > CROWD_SHARE
        labels[inside & (labels == 0)] = -1
    labels[(labels == 0) & (void_share(boxes, target.sem_seg) > VOID_SHARE)] = -1
    return labels, matched


def void_share(boxes: Tensor, sem_seg: Tensor) -> Tensor:
    """Return the fraction of void pixels in each box.

    Args:
        boxes: Tensor[N, 4] in pixels; rounded to whole pixels and clipped to the image.
        sem_seg: semantic map, Tensor[H, W] int64.

    Returns:
        Tensor[N], 0-1; 0 for a box without a pixel.
    """
    height, width = sem_seg.shape
    sums = torch.nn.functional.pad((sem_seg == VOID).long().cumsum(0).cumsum(1), (1, 0, 1, 0))  # H+1 × W+1
    x1, y1, x2, y2 = boxes.round().long().unbind(1)
    x1, x2 = x1.clamp(0, width), x2.clamp(0, width)
    y1, y2 = y1.clamp(0, height), y2.clamp(0, height)
    void = sums[y2, x2] - sums[y1, x2] - sums[y2, x1] + sums[y1, x1]
    return void / ((x2 - x1) * (y2 - y1)).clamp(min=1)


def sample(labels: Tensor, count: int, positive_fraction: float) -> tuple[Tensor, Tensor]:
    """Sample positive and negative boxes at random.

    Args:
        labels: labels of `match`, Tensor[N] int64.
        count: maximum number of samples; negatives fill the part that positives leave.
        positive_fraction: maximum fraction of `count` that is positive.

    Returns:
        Indices of the sampled positives and negatives, int64.
    """
    positive = torch.nonzero(labels == 1).squeeze(1)
    negative = torch.nonzero(labels == 0).squeeze(1)
    num_positive = min(len(positive), int(count * positive_fraction))
    num_negative = min(len(negative), count - num_positive)
    positive = positive[torch.randperm(len(positive), device=labels.device)[:num_positive]]
    negative = negative[torch.randperm(len(negative), device=labels.device)[:num_negative]]
    return positive, negative
