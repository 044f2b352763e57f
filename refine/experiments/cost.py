"""What a network costs: parameters, arithmetic and seconds."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from typing import Any

import torch
from torchvision.models.resnet import Bottleneck

from refine.experiments.machine import describe_machine
from refine.experiments.stages import Stage, profile_stages
from refine.modeling.box_head import BoxHead
from refine.modeling.config import ModelConfig
from refine.modeling.model import PanopticModel
from refine.runtime import find_device


@dataclass
class NetworkInfo:
    """Cost of one network on one image.

    Attributes:
        parameters: in all.
        trained: of them, those that training moves.
        stages: by name, in the order of the forward pass; seconds and 10⁹ operations of one image.
        seconds: of one `predict`, the fastest of those timed.
        size: (height, width) of the image in pixels.
        detections: instances that the masks were computed for.
        machine: what it was timed on, see `describe_machine`.
    """

    parameters: int
    trained: int
    stages: dict[str, Stage]
    seconds: float
    size: tuple[int, int]
    detections: int
    machine: dict[str, Any]


def network_info(
    config: ModelConfig,
    num_things: int,
    num_classes: int,
    size: tuple[int, int] = (800, 1333),
    device: str = "cpu",
    repeats: int = 3,
) -> NetworkInfo:
    """Build the network with random weights and measure it on one random image.

    Args:
        config: of the network; its pretrained weights are not loaded.
        num_things, num_classes: classes.
        size: (height, width) of the image in pixels.
        device: to measure on.
        repeats: timed runs after one warm-up, which counts the arithmetic.
    """
    place = find_device(device)
    model = random_model(config, num_things, num_classes).to(place)
    images = model.image_batch([torch.randint(0, 256, (3, *size), dtype=torch.uint8)])
    with profile_stages(model, count_flops=True) as counted:
        detections = len(model.predict(images)[0].instances)
    seconds = float("inf")
    stages: dict[str, Stage] = {}
    for _ in range(repeats):
        with profile_stages(model) as timed:
            start = time.perf_counter()
            model.predict(images)
            total = time.perf_counter() - start
        if total < seconds:
            seconds = total
            stages = {name: Stage(stage.seconds, counted[name].gflops) for name, stage in timed.items()}
    parameters = list(model.parameters())
    return NetworkInfo(
        parameters=sum(p.numel() for p in parameters),
        trained=sum(p.numel() for p in parameters if p.requires_grad),
        stages=stages,
        seconds=seconds,
        size=size,
        detections=detections,
        machine=describe_machine(place),
    )


def random_model(config: ModelConfig, num_things: int, num_classes: int) -> PanopticModel:
    """A network with random weights, in evaluation mode, that finds `max_detections` boxes.

    With random weights no box stands out, so the classifier is drawn wider: then NMS, the masks and the
    exchange have as much to do as on a full picture. Residual branches start small, because fixed statistics
    do not keep maps from growing block by block.
    """
    config = copy.deepcopy(config)
    config.backbone.weights = None
    model = PanopticModel(config, num_things, num_classes).eval()
    with torch.no_grad():
        for stage in model.box_heads.stages:
            assert isinstance(stage, BoxHead)
            stage.classifier.weight.normal_(std=0.1)
        for block in model.backbone.modules():
            if isinstance(block, Bottleneck):
                block.bn3.weight.fill_(0.2)
    return model
