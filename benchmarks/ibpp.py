"""What IBPP costs at test: REFINE with T = 3 against the same network with T = 0, side by side.

    python benchmarks/ibpp.py --out ibpp.json

ResNet-50 at 800 × 1333 with random weights, 100 detections placed as boxes of COCO's sizes are, so that both
networks do the same work up to the boxes. The two take turns for `--rounds` rounds and the median counts.
CPU time of the process is given too: its ratio hardly depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from refine.engine.machine import describe_machine
from refine.files import write_json
from refine.modeling.config import BackboneConfig, IBPPConfig, ModelConfig
from refine.modeling.model import PanopticModel
from refine.structures import Instances

THINGS, CLASSES = 80, 133
SIZE = (800, 1333)
DETECTIONS = 100


class FixedBoxes(nn.Module):
    """Runs the box head as it is and answers with the same 100 boxes for every network."""

    def __init__(self, heads: nn.Module, detections: Instances) -> None:
        super().__init__()
        self.heads, self.detections = heads, detections

    def predict(self, *arguments: Any) -> list[Instances]:
        self.heads.predict(*arguments)
        return [self.detections]


def build(iterations: int, shared: bool, detections: Instances) -> PanopticModel:
    torch.manual_seed(0)
    config = ModelConfig(
        backbone=BackboneConfig("resnet50", weights=None, norm="frozen_bn"),
        ibpp=IBPPConfig(iterations=iterations, shared=shared),
    )
    model = PanopticModel(replace(config), THINGS, CLASSES).eval()
    model.box_heads = FixedBoxes(model.box_heads, detections)  # type: ignore[assignment]
    return model


def boxes_of_coco(seed: int = 0) -> Instances:
    """100 boxes whose sides are log-normal around an eighth of the image (COCO's median), of 10 classes."""
    generator = torch.Generator().manual_seed(seed)
    height, width = SIZE
    sides = (torch.randn(DETECTIONS, 2, generator=generator) * 0.8 - 2.1).exp().clamp(0.01, 0.95)
    sides = sides * torch.tensor([width, height])
    corner = torch.rand(DETECTIONS, 2, generator=generator) * (torch.tensor([width, height]) - sides)
    return Instances(
        SIZE,
        torch.cat([corner, corner + sides], 1),
        torch.rand(DETECTIONS, generator=generator).sort(descending=True).values,
        torch.randint(10, (DETECTIONS,), generator=generator),
    )


def measure(models: dict[str, PanopticModel], image: Tensor, rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds of each model, wall and CPU, taking turns."""
    device = image.device
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for number in range(rounds + 1):
        for name, model in models.items():
            wall, cpu = time.perf_counter(), time.process_time()
            model.predict(model.image_batch([image]))
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number:  # the first round warms up
                seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: {
            "wall_s": statistics.median(w for w, _ in times),
            "cpu_s": statistics.median(c for _, c in times),
        }
        for name, times in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="of the CPU (torch's choice)")
    parser.add_argument("--profile", action="store_true", help="print where the time of T = 3 goes")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    detections = boxes_of_coco().to(device)
    models = {
        "T = 0": build(0, False, detections).to(device),
        "T = 3": build(3, False, detections).to(device),
        "T = 3, shared heads": build(3, True, detections).to(device),
    }
    image = torch.randint(0, 255, (3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    numbers = measure(models, image.to(device), options.rounds)
    table = Table("network", "wall s", "CPU s", "ratio wall", "ratio CPU")
    base = numbers["T = 0"]
    for name, row in numbers.items():
        row["ratio_wall"], row["ratio_cpu"] = row["wall_s"] / base["wall_s"], row["cpu_s"] / base["cpu_s"]
        table.add_row(name, *(f"{row[k]:.2f}" for k in ("wall_s", "cpu_s", "ratio_wall", "ratio_cpu")))
    Console().print(table)
    if options.profile:
        from torch.profiler import profile, record_function

        with profile() as recorded, record_function("predict"):
            models["T = 3"].predict(models["T = 3"].image_batch([image.to(device)]))
        print(recorded.key_averages(group_by_input_shape=True).table(sort_by="self_cpu_time_total", row_limit=25))
    if options.out:
        write_json(options.out, {"machine": describe_machine(device), "networks": numbers}, indent=1)


if __name__ == "__main__":
    main()
