"""Where the time of training goes: waiting for data, forward, backward, update of the weights.

    python benchmarks/training.py configs/dsb2018.yaml configs/photographs.yaml --updates 20 --out training.json

Runs the config's own updates from its own start. "data" is what the training process waits for its batch: with
`--workers 0` the loading itself, with more what loading beside the computation leaves of it; on a GPU that keeps
up, it is near zero. "loading" is what one process takes to load a batch, whatever else goes on.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from refine.data.build import build_dataset
from refine.experiments.machine import describe_machine
from refine.files import write_json
from refine.modeling.model import PanopticModel
from refine.runtime import Processes, processes
from refine.training.batches import training_parts
from refine.training.config import RunConfig, load_run
from refine.training.update import TrainingModule

WARM_UP = 3
"""First updates, which are not counted."""
PARTS = ("data", "forward", "backward", "update")


class TimedModule(TrainingModule):
    """Notes when the losses are there and when the gradients are."""

    def _forward(self, *batch) -> dict[str, Tensor]:  # type: ignore[no-untyped-def]
        losses = super()._forward(*batch)
        self.losses_there = now(self.group.device)
        return losses

    def _clip(self) -> Tensor:
        self.gradients_there = now(self.group.device)
        return super()._clip()


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(config: RunConfig, group: Processes, updates: int) -> dict[str, float]:
    """Median seconds per update of each part; images per second; share of the time that computes."""
    dataset = build_dataset(config.data.train, "data.train")
    torch.manual_seed(config.seed)
    model = PanopticModel(config.model, dataset.categories.num_things, len(dataset.categories))
    module = TimedModule(model.to(group.device), config, group)
    parts = training_parts(dataset, config, group, start=0)
    rows = []
    for number in range(WARM_UP + updates):
        began = now(group.device)
        batch = next(parts)
        loaded = now(group.device)
        module.update(batch)
        ended = now(group.device)
        if number >= WARM_UP:
            times = (began, loaded, module.losses_there, module.gradients_there, ended)
            rows.append([b - a for a, b in pairwise(times)])
    seconds = dict(zip(PARTS, map(statistics.median, zip(*rows, strict=True)), strict=True))
    alone = training_parts(dataset, replace(config, workers=0), group, start=0)
    loading = []
    for _ in range(WARM_UP + 5):
        began = time.perf_counter()
        next(alone)
        loading.append(time.perf_counter() - began)
    whole = sum(seconds.values())
    return seconds | {
        "loading": statistics.median(loading),
        "images_per_second": config.optim.batch_size / whole,
        "computing": 1 - seconds["data"] / whole,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", help="YAMLs of runs")
    parser.add_argument("--updates", type=int, default=20, help=f"that are counted, after {WARM_UP}")
    parser.add_argument("--workers", type=int, help="processes that load (the config's)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    table = Table("config", *(f"{part} s" for part in PARTS), "loading s", "images/s", "computing", min_width=90)
    numbers = {}
    for name in options.configs:
        words = [f"--device={options.device}"]
        if options.workers is not None:
            words.append(f"--workers={options.workers}")
        config = load_run(name, words)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        with processes(config.device) as group:
            row = numbers[Path(name).stem] = measure(config, group, options.updates)
        seconds = [f"{row[part]:.3f}" for part in (*PARTS, "loading")]
        table.add_row(Path(name).stem, *seconds, f"{row['images_per_second']:.2f}", f"{row['computing']:.0%}")
    Console().print(table)
    if options.out:
        machine = describe_machine(group.device)
        write_json(options.out, {"machine": machine, "configs": numbers}, indent=1)


if __name__ == "__main__":
    main()
