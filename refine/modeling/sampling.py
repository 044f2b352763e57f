"""Which boxes show which instance, and which of them a loss is taken of."""

from __future__ import annotations

import torch
from torch import Tensor

from refine.ops.boxes import box_iou, intersection_over_area
from refine.structures import VOID, Targets

CROWD_SHARE = 0.5
"""A box with a larger share of its area in the box of a crowd region is no background."""

VOID_SHARE = 0.5
"""Nor is one with a larger share of its pixels void: evaluation ignores a prediction there, too."""


def match(
    boxes: Tensor, target: Targets, negative_iou: float, positive_iou: float, rescue: bool = False
) -> tuple[Tensor, Tensor]:
    """Match each box to the instance that it overlaps most.

    Crowd regions are matched to nothing. What would be background but lies mostly in one, or on void, is
    neither positive nor negative, for there may be objects in it that nobody drew.

    Args:
        boxes: Tensor[N, 4] in pixels.
        target: G instances, crowd regions among them.
        negative_iou: boxes with a best IoU below are negative.
        positive_iou: at or above, positive; in between, neither.
        rescue: the boxes that overlap an instance most are positive, however little that is. They keep
            the instance that *they* overlap most, which may be another one, as detectron2 has it.

    Returns:
        labels: Tensor[N] int64, 1 positive, 0 negative, -1 neither.
        matched: Tensor[N] int64, index of the instance in `target`; means nothing where not positive.
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
    """Share of void among the pixels of each box.

    Args:
        boxes: Tensor[N, 4] in pixels; rounded to whole ones, and cut to the image.
        sem_seg: Tensor[H, W] int64.

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
    """Draw positives and negatives at random.

    Args:
        labels: Tensor[N] int64 of `match`.
        count: how many in all, at most; negatives fill up what positives leave.
        positive_fraction: at most this share of `count` is positive.

    Returns:
        Indices of the positives and of the negatives drawn, int64.
    """
    positive = torch.nonzero(labels == 1).squeeze(1)
    negative = torch.nonzero(labels == 0).squeeze(1)
    num_positive = min(len(positive), int(count * positive_fraction))
    num_negative = min(len(negative), count - num_positive)
    positive = positive[torch.randperm(len(positive), device=labels.device)[:num_positive]]
    negative = negative[torch.randperm(len(negative), device=labels.device)[:num_negative]]
    return positive, negative
