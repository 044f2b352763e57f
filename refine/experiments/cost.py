"""Cost of a model: parameters, FLOPs, seconds per image and stage, and memory."""

from __future__ import annotations

import copy
import resource
import statistics
import time
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import nn

from refine.checkpoint.folder import SavedModel
from refine.experiments.machine import describe_machine
from refine.experiments.stages import count_stages, time_stages
from refine.fusion.config import Head
from refine.inference.predictor import Predictor
from refine.modeling.blocks import Bottleneck
from refine.modeling.box_head import BoxHead
from refine.modeling.config import ModelConfig
from refine.modeling.model import PanopticModel
from refine.networks.native import NativeNetwork


@dataclass
class Stage:
    """Cost of one stage of prediction.

    Attributes:
        seconds: wall time on a CPU, time on the stream on a GPU.
        gflops: 10⁹ floating-point operations of convolutions and matrix products (two per multiply-add).
    """

    seconds: float
    gflops: float


@dataclass
class Cost:
    """Cost of one model per image, from the image to the panoptic map.

    Attributes:
        parameters: number of parameters.
        trained: number of trainable parameters.
        stages: median cost by name of the stage, in the order of the forward pass. "fusion" includes resizing to
            the size of the image and all of `fuse` except the fusion heads; "other" is the remaining time, on a GPU
            including all time without a kernel.
        seconds: median of the total seconds.
        memory: peak memory in bytes, of tensors on a GPU, of the process on a CPU.
        detections: mean number of instances before fusion.
        machine: result of `describe_machine`.
    """

    parameters: int
    trained: int
    stages: dict[str, Stage]
    seconds: float
    memory: int
    detections: float
    machine: dict[str, Any]


def measure_cost(
    saved: SavedModel,
    *,
    size: tuple[int, int] = (800, 1333),
    batch: int = 1,
    device: str = "cpu",
    precision: Literal["32", "bf16", "fp16"] = "32",
    compiled: bool = False,
    rounds: int = 5,
) -> Cost:
    """Measure the cost of a model on random images.

    Args:
        saved: model to measure.
        size: (height, width) of the images in pixels; they are not resized.
        batch: images per forward pass.
        device: "cpu", "cuda", …
        precision: "bf16" or "fp16" runs the network under autocast.
        compiled: whether to compile the backbone and the FPN with torch.compile.
        rounds: number of timed runs, after one run to count FLOPs and one to warm up.
    """
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for _ in range(batch)]
    saved = replace(saved, test_size=(min(size), max(size)))
    with count_stages() as counted:
        _run(Predictor(saved, device=device), images)
    copied = replace(saved, model=copy.deepcopy(saved.model))
    predictor = Predictor(NativeNetwork(copied, device, precision, compiled, folded=True))
    _run(predictor, images)
    runs, timed = [], []
    for _ in range(rounds):
        with time_stages(predictor.device) as stages:
            runs.append(_run(predictor, images))
        timed.append(stages)
    network, seconds = (statistics.median(run[n] for run in runs) / batch for n in (0, 1))
    medians = {name: statistics.median(stages[name] for stages in timed) / batch for name in timed[0]}
    heads = sum(medians.get(name, 0.0) for name in get_args(Head))
    medians["other"] = max(network - (sum(medians.values()) - heads), 0.0)
    medians["fusion"] = max(seconds - network - heads, 0.0)
    parameters = list(saved.model.parameters())
    return Cost(
        parameters=sum(p.numel() for p in parameters),
        trained=sum(p.numel() for p in parameters if p.requires_grad),
        stages={name: Stage(s, counted.get(name, 0) / 1e9 / batch) for name, s in medians.items()},
        seconds=seconds,
        memory=(
            torch.cuda.max_memory_allocated()
            if predictor.device.type == "cuda"
            else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        ),
        detections=runs[0][2] / batch,
        machine=describe_machine(predictor.device),
    )


def random_model(config: ModelConfig, num_things: int, num_classes: int) -> PanopticModel:
    """Build a network with random weights, in evaluation mode, that returns `max_detections` boxes.

    With random weights all scores would be alike, so the classifier gets a larger standard deviation: NMS, masks
    and exchange then have as much work as on a crowded image. Residual branches start small, because with fixed
    statistics the activations would grow from block to block.
    """
    model = PanopticModel(config, num_things, num_classes).eval()
    with torch.no_grad():
        for stage in model.box_heads.stages if model.detector is None else ():
            assert isinstance(stage, BoxHead)
            stage.classifier.weight.normal_(std=0.1)
        for block in model.backbone.modules():
            if isinstance(block, Bottleneck):
                nn.init.constant_(block.bn3.weight, 0.2)  # type: ignore[arg-type]
    return model


def _run(predictor: Predictor, images: list[torch.Tensor]) -> tuple[float, float, int]:
    """Predict images; return the seconds of the network, the total seconds, and the number of detections."""
    began = _now(predictor.device)
    predictions = predictor.predict_raw(images)
    between = _now(predictor.device)
    for prediction in predictions:
        predictor.fuse(prediction)
    ended = _now(predictor.device)
    return between - began, ended - began, sum(len(p.instances) for p in predictions)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
