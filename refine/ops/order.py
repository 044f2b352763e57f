"""Which of two overlapping masks lies in front, by a ground truth that shows one object per pixel."""

from __future__ import annotations

import torch
from torch import Tensor

from refine.ops.masks import overlapping

# Shape letters: N masks (predictions), M objects (ground truth), P pixels of the image, in any order.


MATCHED_IOU = 0.5
"""Lowest IoU of a prediction with the object that it stands for."""


def match_masks(masks: Tensor, labels: Tensor, objects: Tensor, object_labels: Tensor, ignored: Tensor) -> Tensor:
    """Find the object of the same class that each mask stands for.

    Args:
        masks: Tensor[N, P] bool, predictions.
        labels: Tensor[N] int64, their classes.
        objects: Tensor[M, P] bool, ground truth.
        object_labels: Tensor[M] int64, their classes.
        ignored: Tensor[M] bool, objects that nothing stands for, such as crowds.

    Returns:
        Tensor[N] int64, index of the object of highest IoU, or -1 if none reaches `MATCHED_IOU`.
    """
    if not len(objects) or not len(masks):
        return torch.full((len(masks),), -1, device=masks.device)
    common = common_pixels(masks, objects)
    ious = common / (masks.sum(1)[:, None] + objects.sum(1) - common).clamp(min=1)
    ious[(labels[:, None] != object_labels) | ignored] = 0
    best, index = ious.max(1)
    return torch.where(best >= MATCHED_IOU, index, -1)


def ordered_pairs(masks: Tensor, matched: Tensor, owner: Tensor, labelled: Tensor, share: float) -> Tensor:
    """Find the pairs of masks whose order the ground truth decides.

    Two masks that stand for different objects are a pair if they overlap by `share`; the one whose object owns
    more of the shared pixels is in front. Pairs are left out where others own at least half of the labelled
    shared pixels, for then the truth says nothing of the two.

    Args:
        masks: Tensor[N, P] bool.
        matched: Tensor[N] int64, object that each stands for, or -1, as `match_masks` returns it.
        owner: Tensor[P] int64, object that the ground truth shows at each pixel, or -1.
        labelled: Tensor[P] bool, pixels whose class is known.
        share: ρ, share of either mask, 0-1.

    Returns:
        Tensor[n, 2] int64, (front, back).
    """
    chosen = torch.nonzero(matched >= 0).squeeze(1)
    masks, matched = masks[chosen], matched[chosen]
    shared = common_pixels(masks, masks)
    owned = common_pixels(masks & (owner == matched[:, None]), masks)
    known = 2 * (owned + owned.T) > common_pixels(masks & labelled, masks)
    front = overlapping(shared, share) & known & (owned > owned.T) & (matched[:, None] != matched)
    return chosen[torch.nonzero(front)]


def common_pixels(masks: Tensor, others: Tensor) -> Tensor:
    """Count the pixels that masks share: Tensor[N, P] bool, Tensor[M, P] bool -> Tensor[N, M] float32.

    Exact below 2^24; autocast, under which networks train, would make it half precision.
    """
    with torch.autocast(masks.device.type, enabled=False):
        return masks.float() @ others.float().T
