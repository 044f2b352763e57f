"""Small box heads, and FPN maps for them."""

import torch

from refine.modeling.box_head import BoxHeads
from refine.modeling.config import BoxHeadConfig
from refine.ops.roi import Sampling

SIZE = (128, 160)
K = 5
CASCADE = {"ious": [0.5, 0.6, 0.7], "class_agnostic": True}


def pyramid(batch=1, channels=8, size=SIZE, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, channels, size[0] // s, size[1] // s, generator=g) for s in (4, 8, 16, 32)]


def make_heads(std=0.3, **changes) -> BoxHeads:
    """Return small heads with clearly different scores."""
    config = BoxHeadConfig(**({"num_convs": 1, "conv_channels": 8, "fc_channels": 16} | changes))
    heads = BoxHeads(config, 8, K, Sampling())
    for stage in heads.stages:
        torch.nn.init.normal_(stage.classifier.weight, std=std)
        torch.nn.init.normal_(stage.regressor.weight, std=std)
    return heads
