"""Time and FLOPs per stage of a forward pass, where stages are the spans of `refine.modeling.spans`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from refine.modeling.spans import listening


@contextmanager
def time_stages(device: torch.device) -> Iterator[dict[str, float]]:
    """Time all stages that run inside the context, in any thread.

    Args:
        device: device of the network.

    Yields:
        Seconds by stage, in the order of their first run, filled when the context ends: wall time on a CPU, time on
        the stream on a GPU.
    """
    seconds: dict[str, float] = {}
    marks: list[tuple[str, Any, Any]] = []

    def begin(name: str) -> Callable[[], None]:
        seconds[name] = 0.0
        began = _mark(device)
        return lambda: marks.append((name, began, _mark(device)))

    with listening(begin):
        yield seconds
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    for name, began, ended in marks:
        seconds[name] += began.elapsed_time(ended) / 1000 if device.type == "cuda" else ended - began


def _mark(device: torch.device) -> float | torch.cuda.Event:
    """Return the time, or an event that takes it on the GPU without waiting."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


@contextmanager
def count_stages() -> Iterator[dict[str, int]]:
    """Count the floating-point operations of all stages that run inside the context, in this thread.

    As in `FlopCounterMode`, only convolutions and matrix products count, with two operations per multiply-add; the
    profiler's own count includes elementwise operations.

    Yields:
        Operations by stage, in the order of their first run, updated while the context is open.
    """
    flops: dict[str, int] = {}

    def begin(name: str) -> Callable[[], None]:
        before = counter.get_total_flops()
        flops.setdefault(name, 0)

        def end() -> None:
            flops[name] += counter.get_total_flops() - before

        return end

    with FlopCounterMode(display=False) as counter, listening(begin):
        yield flops
