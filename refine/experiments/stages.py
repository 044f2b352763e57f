"""Time and FLOPs per stage of a forward pass, where stages are the spans of `refine.modeling.spans`."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from refine.modeling.spans import PREFIX

_ENTER = torch.ops.profiler._record_function_enter_new.default
_EXIT = torch.ops.profiler._record_function_exit._RecordFunction


@contextmanager
def time_stages() -> Iterator[dict[str, float]]:
    """Time all stages that run inside the context, in any thread.

    Yields:
        Seconds by stage, in the order of their first run, filled when the context ends: wall time on a CPU, kernel
        time on a GPU.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # no messages of the profiler on stderr
    on_gpu = torch.cuda.is_initialized()
    seconds: dict[str, float] = {}
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu) as profiler:
        yield seconds
        if on_gpu:
            torch.cuda.synchronize()
    for event in sorted(profiler.events(), key=lambda event: event.time_range.start):
        if event.name.startswith(PREFIX) and event.device_type == DeviceType.CPU:
            name = event.name.removeprefix(PREFIX)
            microseconds = _kernels(event) if on_gpu else event.cpu_time_total
            seconds[name] = seconds.get(name, 0.0) + microseconds / 1e6


def _kernels(event: Any) -> float:
    """Microseconds of the kernels that an event launched; its own range on the GPU is none of them."""
    own = sum(kernel.duration for kernel in event.kernels if kernel.name != event.name)
    return own + sum(_kernels(child) for child in event.cpu_children)


@contextmanager
def count_stages() -> Iterator[dict[str, int]]:
    """Count the floating-point operations of all stages that run inside the context, in this thread.

    As in `FlopCounterMode`, only convolutions and matrix products count, with two operations per multiply-add; the
    profiler's own count includes elementwise operations.

    Yields:
        Operations by stage, in the order of their first run, updated while the context is open.
    """
    flops: dict[str, int] = defaultdict(int)
    with FlopCounterMode(display=False) as counter, _Spans(counter, flops):
        yield flops


@dataclass
class _Spans(TorchDispatchMode):
    """Dispatch mode that adds the operations counted inside each span to the total of its name."""

    counter: FlopCounterMode
    flops: dict[str, int]

    def __post_init__(self) -> None:
        super().__init__()
        self._open: list[tuple[str, int]] = []  # name, and operations counted before the span

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is _ENTER:
            self._open.append((args[0], self.counter.get_total_flops()))
        elif func is _EXIT:
            name, before = self._open.pop()
            if name.startswith(PREFIX):
                self.flops[name.removeprefix(PREFIX)] += self.counter.get_total_flops() - before
        return func(*args, **(kwargs or {}))
