"""Folding of norms with fixed statistics into convolutions, for prediction."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from refine.modeling.deform import DeformableConv
from refine.modeling.norms import FrozenBatchNorm


@torch.no_grad()
def fold_norms(network: nn.Module) -> None:
    """Fold BatchNorms into the convolutions before them, in place; outputs in evaluation mode change by rounding.

    In the networks of refine a norm is registered right after the convolution whose output it normalises.
    Deformable convolutions have no bias and keep their norms.
    """
    for parent in network.modules():
        for (_, conv), (name, norm) in pairwise(list(parent.named_children())):
            plain = isinstance(conv, nn.Conv2d) and not isinstance(conv, DeformableConv)
            if plain and isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm | FrozenBatchNorm):
                _fold(conv, norm)
                setattr(parent, name, nn.Identity().train(norm.training))


def _fold(conv: Any, norm: Any) -> None:
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
