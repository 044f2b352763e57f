"""Timing of several functions in turns, so that other load of the machine affects all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch


def take_turns(
    runs: Mapping[str, Callable[[], Any]], rounds: int, device: torch.device | None = None
) -> dict[str, dict[str, float]]:
    """Time functions in turns; return median wall and CPU seconds by name, and their ratios to the first function.

    Args:
        runs: functions by name.
        rounds: number of timed rounds, after one to warm up.
        device: device to synchronise after each run, if it is a GPU.
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
