"""Which of two overlapping instances lies in front: one function per rule.

All of them take N instances by falling score and give Tensor[N, N] bool, [i, j] = "i lies in front of j".
Where neither [i, j] nor [j, i] holds, the rule does not decide and the higher score stays in front.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from refine.errors import RefineError
from refine.fusion.config import Method
from refine.ops.penalty import in_front
from refine.structures import Instances

OcclusionFn = Callable[[Instances, Tensor], Tensor]
"""(N instances, Tensor[P, 2] int64 of overlapping pairs) -> O, Tensor[N, N], 0-1, read at those pairs, both
ways: O(i, j) is the probability that i lies in front of j."""

SHR_CONTAINED = 0.5
"""Share of a box inside another above which it counts as a part of it [BCC]."""


def by_containment(boxes: Tensor) -> Tensor:
    """SHR: what lies inside another box lies in front of it (tie on person); no training.

    In each pair the instance with the higher score is asked first: it is in front if more than half of its
    box lies in the other's; if not, the other is in front by the same test; else score order.

    Args:
        boxes: Tensor[N, 4], by falling score.
    """
    size = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0)
    corner = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    common = (corner - torch.maximum(boxes[:, None, :2], boxes[None, :, :2])).clamp(min=0).prod(2)
    inside = common > SHR_CONTAINED * size.prod(1)[:, None]  # [i, j]: i lies in j
    higher_first = torch.ones_like(inside).triu(1)  # [i, j]: i has the higher score
    return torch.where(higher_first, inside | ~inside.T, inside & ~inside.T)


def by_occlusion(method: Method, instances: Instances, occlusion: Tensor, sigma: float) -> Tensor:
    """OCFusion and the strong baseline: O(i, j) > O(j, i). SOE: Õ(i, j) > Õ(j, i) (equation 7).

    Args:
        method: "ocfusion", "strong" or "soe". The first two differ only in what their O was computed from.
        instances: for their scores.
        occlusion: O, Tensor[N, N].
        sigma: of equation 7.
    """
    if method == "soe":
        return in_front(instances.scores, occlusion, sigma)
    return occlusion > occlusion.T


def decide(
    method: Method,
    instances: Instances,
    pairs: Tensor,
    occlusion: Tensor | OcclusionFn | None,
    sigma: float,
) -> Tensor:
    """Apply a pairwise rule to the overlapping pairs.

    Args:
        method: "shr", "ocfusion", "strong" or "soe".
        instances: N, by falling score.
        pairs: Tensor[N, N] bool, symmetric: the overlapping ones.
        occlusion: O of these instances or what computes it; the learned rules need it.
        sigma: of equation 7.

    Returns:
        Tensor[N, N] bool, true only among the pairs given.

    Raises:
        RefineError: a learned rule without `occlusion`, or one outside 0-1.
    """
    if method == "shr":
        return by_containment(instances.boxes) & pairs
    if occlusion is None:
        raise RefineError(
            f"method {method!r}: `occlusion` is missing; give the matrix O(i, j), Tensor[N, N] in 0-1, or an "
            "OcclusionHead's `predict` (a head with the cues mask and label needs no features)"
        )
    return by_occlusion(method, instances, evaluate_occlusion(occlusion, instances, pairs), sigma) & pairs


def evaluate_occlusion(occlusion: Tensor | OcclusionFn, instances: Instances, pairs: Tensor) -> Tensor:
    """O of the overlapping pairs.

    Args:
        occlusion: O of these instances, Tensor[N, N], or what computes it.
        instances: N.
        pairs: Tensor[N, N] bool, symmetric: the overlapping ones.

    Returns:
        Tensor[N, N], 0-1 at the pairs.

    Raises:
        RefineError: a value at the pairs is outside 0-1.
    """
    if not isinstance(occlusion, Tensor):
        occlusion = check_shape("occlusion", occlusion(instances, torch.nonzero(pairs.triu())), pairs.shape)
    asked = occlusion[pairs]
    if not bool(((asked >= 0) & (asked <= 1)).all()):
        raise RefineError("occlusion: has values that are not from 0 to 1; apply the sigmoid to logits, once")
    return occlusion


def check_shape(name: str, tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """The tensor; ValueError if its shape is another."""
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name}: expected shape {tuple(shape)}, got {tuple(tensor.shape)}")
    return tensor
