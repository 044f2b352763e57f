"""Folding of norms with fixed statistics into convolutions, for prediction."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from refine.modeling.backbones import ResNet, Shortcut
from refine.modeling.blocks import BasicBlock, Bottleneck
from refine.modeling.efficientnet import Conv2dSame, EfficientNetLite, InvertedResidual, SeparableBlock
from refine.modeling.norms import FrozenBatchNorm

PARENTS = (nn.Sequential, ResNet, BasicBlock, Bottleneck, EfficientNetLite, InvertedResidual, SeparableBlock)
"""Modules in which a norm that is registered right after a convolution normalises its output, and that alone."""
CONVS = (nn.Conv2d, Conv2dSame, Shortcut)
NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm)


@torch.no_grad()
def fold_norms(network: nn.Module) -> None:
    """Fold BatchNorms into the convolutions before them, in place; outputs in evaluation mode change by rounding.

    Types are compared exactly: subclasses may do more, as timm's norms that contain the activation, or deformable
    convolutions, which have no bias. Norms of sums of convolutions, as in the heads of IBPP, stay.
    """
    for parent in network.modules():
        if type(parent) in PARENTS:
            for (_, conv), (name, norm) in pairwise(list(parent.named_children())):
                if type(conv) in CONVS and type(norm) in NORMS:
                    _fold(conv, norm)
                    setattr(parent, name, nn.Identity().train(norm.training))


def _fold(conv: Any, norm: Any) -> None:
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
