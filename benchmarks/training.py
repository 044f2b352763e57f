"""Time of a training update by part: waiting for data, forward pass, backward pass, update of the weights.

    python benchmarks/training.py configs/dsb2018.yaml configs/photographs.yaml --updates 20 --out training.json

Runs the first updates of a config. "data" is the time that the training process waits for a batch: with `--workers
0` the loading itself, with workers the part of it that does not overlap with the computation, which is near zero if
loading keeps up. "loading" is the time in which one process loads a batch.
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
"""Number of first updates, which are not timed."""
PARTS = ("data", "forward", "backward", "update")


class TimedModule(TrainingModule):
    """Training module that records when the losses and the gradients are computed."""

    def _forward(self, *batch) -> dict[str, Tensor]:  # type: ignore[no-untyped-def]
        losses = super()._forward(*batch)
        self.losses_time = now(self.group.device)
        return losses

    def _clip(self) -> Tensor:
        self.gradients_time = now(self.group.device)
        return super()._clip()


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(config: RunConfig, group: Processes, updates: int) -> dict[str, float]:
    """Return the median seconds per update of each part, images per second, and the fraction spent computing."""
    dataset = build_dataset(config.data.train, "data.train.")
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
            times = (began, loaded, module.losses_time, module.gradients_time, ended)
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
    parser.add_argument("configs", nargs="+", help="config YAMLs")
    parser.add_argument(
        "--updates", type=int, default=20, help=f"timed updates, after {WARM_UP} for warm-up (default: 20)"
    )
    parser.add_argument("--workers", type=int, help="loading processes (default: the config's)")
    parser.add_argument("--device", default="cpu", help="(default: cpu)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
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
