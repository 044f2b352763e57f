"""Seconds per image, stage by stage, and the memory it takes, from the picture to the panoptic map."""

from __future__ import annotations

import resource
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

import torch

from refine.checkpoint.folder import SavedModel
from refine.experiments.machine import describe_machine
from refine.experiments.stages import ASKED, profile_stages
from refine.inference.predictor import Predictor


@dataclass
class Benchmark:
    """What was measured.

    Attributes:
        stages: median seconds per image of each stage, in the order of the forward pass; "fusion" contains
            upsampling to the picture's size and all of `fuse`, "other" what no stage contains.
        seconds: median seconds per image in all.
        memory: peak in bytes: of tensors on a GPU, of the process on a CPU.
        detections: mean number of instances per image before fusion.
        machine: see `describe_machine`.
    """

    stages: dict[str, float]
    seconds: float
    memory: int
    detections: float
    machine: dict[str, object]


def benchmark(
    saved: SavedModel,
    *,
    size: tuple[int, int] = (800, 1333),
    batch: int = 1,
    device: str = "cpu",
    precision: Literal["32", "bf16", "fp16"] = "32",
    compiled: bool = False,
    rounds: int = 5,
) -> Benchmark:
    """Time a model on random pictures.

    Args:
        saved: the model.
        size: (height, width) of the pictures, which are not resized.
        batch: pictures at a time.
        device: to run on.
        precision: "bf16" or "fp16" runs the network under autocast.
        compiled: compile the backbone and the pyramid with torch.compile.
        rounds: timed runs, after one that warms up.
    """
    predictor = Predictor(saved, device=device, precision=precision, compiled=compiled)
    predictor.test_size = (min(size), max(size))
    model = predictor.model
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for _ in range(batch)]
    on_gpu = predictor.device.type == "cuda"
    times: dict[str, list[float]] = defaultdict(list)
    detections = 0
    for number in range(rounds + 1):
        with profile_stages(model) as stages:
            began = _now(on_gpu)
            predictions = predictor.predict_raw(images)
            between = _now(on_gpu)
            for prediction in predictions:
                predictor.fuse(prediction)
            ended = _now(on_gpu)
        if not number:  # warms up
            detections = sum(len(p.instances) for p in predictions)
            continue
        for name, stage in stages.items():
            times[name].append(stage.seconds / batch)
        asked = sum(stage.seconds for name, stage in stages.items() if name in ASKED)
        of_stages = sum(stage.seconds for stage in stages.values()) - asked
        times["other"].append((between - began - of_stages) / batch)
        times["fusion"].append((ended - between - asked) / batch)
        times["all"].append((ended - began) / batch)
    memory = (
        torch.cuda.max_memory_allocated() if on_gpu else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    total = medians.pop("all")
    return Benchmark(medians, total, memory, detections / batch, describe_machine(predictor.device))


def _now(on_gpu: bool) -> float:
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter()
