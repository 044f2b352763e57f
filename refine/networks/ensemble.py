"""Instances of several models of one image, merged before fusion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from refine.ops.cells import cells_of
from refine.structures import Instances

SAME_OBJECT = 0.5
"""Mask IoU from which two detections of one class are the same object."""


def merge_instances(detections: Sequence[Instances], min_score: float = 0.0) -> Instances:
    """Merge the detections of K models by mask NMS with averaged scores.

    By decreasing score, a detection absorbs all remaining ones of its class whose mask IoU with it is at least
    `SAME_OBJECT`. It keeps its own mask and box. Its score becomes the mean over the K models of the best score
    among the detections that it stands for; a model without any counts as 0, so that objects found by one model
    alone need a high score.

    Args:
        detections: detections of each model, on one device.
        min_score: minimum averaged score, 0-1; others are left out.

    Returns:
        Instances with masks as runs, by decreasing score.
    """
    every = Instances.joined([_with_runs(found) for found in detections])
    model = torch.repeat_interleave(torch.tensor([len(found) for found in detections]))
    order = torch.argsort(every.scores, descending=True, stable=True)
    every, model = every[order], model.to(order.device)[order]
    if not len(every):
        return every
    groups = _groups(every)
    scores = every.scores.new_zeros(len(every), len(detections))
    scores.view(-1).scatter_reduce_(0, groups * len(detections) + model, every.scores, "amax")
    leads = torch.unique(groups)
    merged = replace(every, scores=scores.mean(1))[leads]
    merged = merged[merged.scores >= min_score]
    return merged[torch.argsort(merged.scores, descending=True, stable=True)]


def _groups(instances: Instances) -> Tensor:
    """Return the index of the detection that stands for each, Tensor[N] int64: its own, or a preceding one."""
    shared = cells_of(instances.mask_runs()).intersections().double()
    areas = shared.diagonal()
    iou = shared / (areas[:, None] + areas - shared).clamp(min=1)
    same = (iou >= SAME_OBJECT) & (instances.labels[:, None] == instances.labels)
    rows = same.cpu()
    groups = torch.full((len(rows),), -1)
    for n in range(len(rows)):  # the leads are few, and each depends on those before it
        if groups[n] < 0:
            groups[rows[n] & (groups < 0)] = n
            groups[n] = n
    return groups.to(same.device)


def _with_runs(instances: Instances) -> Instances:
    return replace(instances, runs=instances.mask_runs(), masks=None, roi_masks=None, features=None)
