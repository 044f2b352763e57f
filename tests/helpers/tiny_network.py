"""Smallest network that the commands can run."""

from typing import Any

from refine.modeling.config import BackboneConfig, BoxHeadConfig, IBPPConfig, MaskHeadConfig, ModelConfig
from refine.modeling.config import SemanticHeadConfig as Semantic


def tiny_config(iterations: int, box_head: dict[str, Any], **parts: Any) -> ModelConfig:
    """Return a config of 8 channels and heads of 16 on a ResNet-18; `box_head` and `parts` override fields."""
    return ModelConfig(
        backbone=BackboneConfig(
            "resnet18", weights=None, frozen_stages=0, stem_width=8, width_per_group=8, res2_channels=32
        ),
        fpn_channels=16,
        box_head=BoxHeadConfig(**({"num_convs": 1, "conv_channels": 16, "fc_channels": 16} | box_head)),
        mask_head=MaskHeadConfig(num_convs=1, channels=16),
        semantic_head=Semantic(channels=16),
        ibpp=IBPPConfig(iterations, sem_channels=16),
        **parts,
    )
