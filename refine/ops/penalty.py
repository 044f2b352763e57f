"""The soft penalty of SOE (paper, equation 7)."""

from __future__ import annotations

import torch
from torch import Tensor


def soft_occlusion(scores: Tensor, occlusion: Tensor, sigma: float) -> Tensor:
    """Compute Õ(i, j) = s_i · exp(−(O(i, j) − 1)² / σ), the evidence that instance i lies in front of j.

    The factor is 1 at O = 1 and exp(−1/σ) at O = 0, so σ limits how far the occlusion O can overrule the
    confidence s: if s_i < s_j·exp(−1/σ), instance i never lies in front.

    Args:
        scores: Tensor[N] float, confidence s, 0-1.
        occlusion: Tensor[N, N] float, O(i, j), 0-1: probability that i lies in front of j.
        sigma: σ, above 0; 2.5 in the paper.

    Returns:
        Tensor[N, N] of the scores' dtype, 0-1.
    """
    return scores[:, None] * torch.exp(-((occlusion - 1) ** 2) / sigma)


def in_front(scores: Tensor, occlusion: Tensor, sigma: float) -> Tensor:
    """Decide Õ(i, j) > Õ(j, i), compared as σ·ln s − (O − 1)².

    The logarithmic form is equivalent, but does not underflow: for σ → 0 it becomes O(i, j) > O(j, i) (for O
    between 0 and 1), for σ → ∞ it becomes s_i > s_j.

    Args:
        scores, occlusion, sigma: as in `soft_occlusion`.

    Returns:
        Tensor[N, N] bool, [i, j] = "i lies in front of j"; false both ways for a tie.
    """
    claim = sigma * scores.double().log()[:, None] - (occlusion.double() - 1) ** 2
    return claim > claim.T
