"""Gradients that the exchange carries from each branch to the predictions of the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refine.modeling.model import PanopticModel
from refine.structures import ImageBatch, Targets


def gradient_flow(model: PanopticModel, batch: ImageBatch, targets: Sequence[Targets]) -> dict[str, float]:
    """Return the fraction of each prediction's gradient that comes from the other branch, in evaluation mode.

    Returns:
        By name of the prediction (P_sem^(0), m^(1), …), the norm of the gradient from the other branch's losses
        divided by the sum of both norms, 0-1.
    """
    semantics: list[Tensor] = []
    masks: list[Tensor] = []

    def keep(module: Any, arguments: Any, output: Any) -> None:
        of_masks = isinstance(output, tuple)  # a mask head's logits and features
        tensor = output[0] if of_masks else output
        if tensor.requires_grad:
            (masks if of_masks else semantics).append(tensor)

    parts = [model.semantic_head, *(head.get_submodule("predictor") for head in model.ibpp.semantic_heads)]
    handles = [part.register_forward_hook(keep) for part in [*parts, *model.ibpp.mask_heads]]
    try:
        losses = model.loss(batch, targets)
    finally:
        for handle in handles:
            handle.remove()
    norms = {}
    for kind in ("sem", "mask"):
        total = torch.stack([v for k, v in losses.items() if k.startswith(f"loss_{kind}_")]).sum()
        gradients = torch.autograd.grad(total, [*semantics, *masks], retain_graph=True, allow_unused=True)
        norms[kind] = [0.0 if g is None else float(g.norm()) for g in gradients]
    names = [f"P_sem^({t})" for t in range(len(semantics))] + [f"m^({t + 1})" for t in range(len(masks))]
    return {
        name: (of_mask if name.startswith("P") else of_sem) / max(of_sem + of_mask, 1e-12)
        for name, of_sem, of_mask in zip(names, norms["sem"], norms["mask"], strict=True)
    }


def describe_flow(flows: Sequence[dict[str, float]]) -> list[str]:
    """Return a Markdown table of `gradient_flow`, averaged over the checkpoints."""
    source = {"P": "mask losses, through p_sem", "m": "semantic losses, through the canvas"}
    shares = {name: 100 * np.mean([flow[name] for flow in flows]) for name in flows[0]}
    rows = [f"| {name} | {source[name[0]]} | {share:.1f} |" for name, share in shares.items()]
    return ["| prediction | gradient from | fraction, % |", "|-|-|-|", *rows]
