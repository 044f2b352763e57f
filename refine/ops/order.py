"""Occlusion order of overlapping masks, derived from a ground truth with one object per pixel."""

from __future__ import annotations

import torch
from torch import Tensor

from refine.ops.masks import overlapping

# Shape letters: N masks (predictions), M objects (ground truth), P pixels of the image, flattened in any order.


MATCHED_IOU = 0.5
"""Lowest IoU at which a prediction matches an object."""


def match_masks(
    masks: Tensor, labels: Tensor, objects: Tensor, object_labels: Tensor, ignored: Tensor
) -> tuple[Tensor, Tensor]:
    """Match each mask to the ground-truth object of its class with the highest IoU.

    Args:
        masks: Tensor[N, P] bool, predicted masks.
        labels: Tensor[N] int64, class of each mask.
        objects: Tensor[M, P] bool, ground-truth masks.
        object_labels: Tensor[M] int64, class of each object.
        ignored: Tensor[M] bool, objects that are never matched, such as crowds.

    Returns:
        Tensor[N] int64, index of the matched object, or -1 if no IoU reaches `MATCHED_IOU`, and the IoU with it,
        Tensor[N] float32.
    """
    if not len(objects) or not len(masks):
        return torch.full((len(masks),), -1, device=masks.device), torch.zeros(len(masks), device=masks.device)
    common = common_pixels(masks, objects)
    ious = common / (masks.sum(1)[:, None] + objects.sum(1) - common).clamp(min=1)
    ious[(labels[:, None] != object_labels) | ignored] = 0
    best, index = ious.max(1)
    return torch.where(best >= MATCHED_IOU, index, -1), best


def ordered_pairs(masks: Tensor, matched: Tensor, owner: Tensor, labelled: Tensor, share: float) -> Tensor:
    """Find the pairs of masks whose occlusion order the ground truth determines.

    Two masks matched to different objects form a pair if they overlap by `share`; the one whose object owns
    more of the shared pixels is in front. Pairs are skipped where other objects own at least half of the
    labelled shared pixels, because the ground truth then does not order the two.

    Args:
        masks: Tensor[N, P] bool, predicted masks.
        matched: Tensor[N] int64, object matched to each mask, or -1 (see `match_masks`).
        owner: Tensor[P] int64, object that the ground truth shows at each pixel, or -1.
        labelled: Tensor[P] bool, pixels whose class is known.
        share: ρ, minimum fraction of either mask that is shared, 0-1.

    Returns:
        Tensor[n, 2] int64, mask indices (front, back).
    """
    indices = torch.nonzero(matched >= 0).squeeze(1)
    masks, matched = masks[indices], matched[indices]
    shared = common_pixels(masks, masks)
    owned = common_pixels(masks & (owner == matched[:, None]), masks)
    known = 2 * (owned + owned.T) > common_pixels(masks & labelled, masks)
    front = overlapping(shared, share) & known & (owned > owned.T) & (matched[:, None] != matched)
    return indices[torch.nonzero(front)]


def true_false_pairs(masks: Tensor, matched: Tensor, iou: Tensor, unknown: Tensor, share: float) -> Tensor:
    """Find the pairs of a true and a false detection that overlap by `share`; the true one should be in front.

    Of the masks matched to an object, the one with the highest IoU is true (the first one for equal IoUs), and the
    others are duplicates. False are masks without an object, which pair with every true mask, and duplicates, which
    pair only with the true mask of their object; `ordered_pairs` orders them against other objects.

    Args:
        masks: Tensor[N, P] bool, predicted masks.
        matched, iou: Tensor[N] int64 and float32, result of `match_masks`.
        unknown: Tensor[N] bool, masks that may show an unlabelled object, and so are not false without a match.
        share: minimum fraction of either mask that is shared, 0-1.

    Returns:
        Tensor[n, 2] int64, mask indices (true, false).
    """
    order = torch.argsort(iou, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    same = (matched[:, None] == matched) & (matched >= 0)
    better = same & (rank[:, None] < rank)  # [i, j]: i is the better one of two masks of one object
    true = (matched >= 0) & ~better.any(0)
    false = (better | ((matched < 0) & ~unknown)) & true[:, None]
    return torch.nonzero(overlapping(common_pixels(masks, masks), share) & false)


def common_pixels(masks: Tensor, others: Tensor) -> Tensor:
    """Count the pixels shared by each pair: Tensor[N, P] bool, Tensor[M, P] bool -> Tensor[N, M] float32.

    Exact below 2^24. Autocast is disabled, because half precision would not be exact.
    """
    with torch.autocast(masks.device.type, enabled=False):
        return masks.float() @ others.float().T
