"""Timing several ways side by side, in turns, so that what else the machine does falls on all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch


def take_turns(
    runs: Mapping[str, Callable[[], Any]], rounds: int, device: torch.device | None = None
) -> dict[str, dict[str, float]]:
    """Median seconds of each run, wall and CPU, over some rounds after one that warms up; ratios to the first.

    Args:
        runs: by name.
        rounds: that count.
        device: waited for after each run if it is a GPU.
    """
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            if device is not None and device.type == "cuda":
                torch.cuda.synchronize()
            if number:
                seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    walls = {name: statistics.median(wall for wall, _ in times) for name, times in seconds.items()}
    cpus = {name: statistics.median(cpu for _, cpu in times) for name, times in seconds.items()}
    first = next(iter(runs))
    return {
        name: {
            "wall_s": walls[name],
            "cpu_s": cpus[name],
            "ratio_wall": walls[name] / walls[first],
            "ratio_cpu": cpus[name] / cpus[first],
        }
        for name in runs
    }
