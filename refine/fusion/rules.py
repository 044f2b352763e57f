"""Rules that decide which of two overlapping instances lies in front, one function per rule.

Each takes N instances by decreasing score and returns Tensor[N, N] bool, [i, j] = "i lies in front of j".
If neither [i, j] nor [j, i] is true, the rule does not decide and the higher score lies in front.
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
"""(N instances, Tensor[P, 2] int64 of overlapping pairs) -> O, Tensor[N, N] float, 0-1, read at (i, j) and (j, i)
of those pairs: O(i, j) is the probability that i lies in front of j."""

SHR_CONTAINED = 0.5
"""Fraction of a box inside another above which the box counts as contained [BCC]."""


def by_containment(boxes: Tensor) -> Tensor:
    """Decide by SHR: an instance inside another's box lies in front (a tie on a person); needs no training.

    In each pair the instance with the higher score is tested first: it is in front if more than half of its
    box lies in the other box; if not, the other is in front by the same test; else the score decides.

    Args:
        boxes: Tensor[N, 4] float, x1, y1, x2, y2 in pixels, by decreasing score.

    Returns:
        Tensor[N, N] bool, [i, j] = "i lies in front of j".
    """
    size = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0)
    corner = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    common = (corner - torch.maximum(boxes[:, None, :2], boxes[None, :, :2])).clamp(min=0).prod(2)
    inside = common > SHR_CONTAINED * size.prod(1)[:, None]  # [i, j]: i lies in j
    higher_first = torch.ones_like(inside).triu(1)  # [i, j]: i has the higher score
    return torch.where(higher_first, inside | ~inside.T, inside & ~inside.T)


def by_occlusion(method: Method, instances: Instances, occlusion: Tensor, sigma: float) -> Tensor:
    """Decide by O(i, j) > O(j, i) (OCFusion, strong baseline) or Õ(i, j) > Õ(j, i) (SOE, equation 7).

    Args:
        method: "ocfusion", "strong" or "soe". The first two differ only in the input of their occlusion head.
        instances: N instances, whose scores are used.
        occlusion: O, Tensor[N, N] float, 0-1.
        sigma: σ of equation 7, above 0.

    Returns:
        Tensor[N, N] bool, [i, j] = "i lies in front of j".
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
        instances: N instances by decreasing score.
        pairs: Tensor[N, N] bool, symmetric, True for overlapping pairs.
        occlusion: O of these instances, Tensor[N, N] float, or a function that computes it; the learned rules
            need it.
        sigma: σ of equation 7, above 0.

    Returns:
        Tensor[N, N] bool, True only at `pairs`.

    Raises:
        RefineError: a learned rule has no `occlusion`, or O is outside 0-1.
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
    """Return O of the overlapping pairs, computed if necessary.

    Args:
        occlusion: O of these instances, Tensor[N, N] float, or a function that computes it.
        instances: N instances.
        pairs: Tensor[N, N] bool, symmetric, True for overlapping pairs.

    Returns:
        Tensor[N, N] float, 0-1 at `pairs`.

    Raises:
        RefineError: a value at `pairs` is outside 0-1.
        ValueError: the function returns another shape.
    """
    if not isinstance(occlusion, Tensor):
        occlusion = check_shape("occlusion", occlusion(instances, torch.nonzero(pairs.triu())), pairs.shape)
    values = occlusion[pairs]
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise RefineError("occlusion: expected values from 0 to 1, got others; apply the sigmoid to logits once")
    return occlusion


def check_shape(name: str, tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the tensor; raise ValueError if its shape differs from `shape`."""
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name}: expected shape {tuple(shape)}, got {tuple(tensor.shape)}")
    return tensor
