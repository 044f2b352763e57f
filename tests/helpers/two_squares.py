"""Configs of a tiny REFINE network, and an image of two squares with its targets."""

from dataclasses import replace

import torch

from refine.modeling.config import (
    BackboneConfig,
    BoxHeadConfig,
    IBPPConfig,
    MaskHeadConfig,
    ModelConfig,
    SemanticHeadConfig,
)
from refine.structures import Targets

THINGS, CLASSES = 2, 4


def tiny(iterations=3, **changes) -> ModelConfig:
    """Return a config of 16 channels on a ResNet-50 of 8; `changes` replace its parts."""
    config = ModelConfig(
        backbone=BackboneConfig(
            "resnet50", weights=None, frozen_stages=0, stem_width=8, width_per_group=8, res2_channels=32
        ),
        fpn_channels=16,
        box_head=BoxHeadConfig(num_convs=1, conv_channels=16, fc_channels=32, samples=32, max_detections=10),
        mask_head=MaskHeadConfig(num_convs=2, channels=16),
        semantic_head=SemanticHeadConfig(channels=16),
        ibpp=IBPPConfig(iterations, sem_channels=16),
    )
    return replace(config, **changes)


CASCADE = BoxHeadConfig(
    ious=[0.5, 0.6, 0.7], class_agnostic=True, num_convs=0, fc_channels=32, samples=32, max_detections=10
)


def scene(instances=True):
    """Return an image of two thing squares on two halves of stuff, and its targets."""
    image = torch.full((3, 64, 96), 60, dtype=torch.uint8)
    index = torch.zeros(64, 96, dtype=torch.int32)
    index[:, 48:] = 1
    image[:, :, 48:] = 120
    if instances:
        index[10:40, 8:40], index[20:50, 56:88] = 2, 3
        image[0, 10:40, 8:40], image[1, 20:50, 56:88] = 250, 250
    index[:2] = -1
    labels = torch.tensor([2, 3, 0, 1])
    return image, Targets.from_panoptic(index, labels, torch.zeros(4, dtype=torch.bool), THINGS)
