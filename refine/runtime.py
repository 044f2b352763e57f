"""Devices, CPU threads, and communication between training processes."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from refine.cores import available_cores
from refine.errors import RefineError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt."""


def prepare_cpu(threads: int | None) -> None:
    """Set the number of CPU threads that torch uses in this process, and let the process keep freed memory.

    By default, glibc returns the memory of every large tensor to the system at once, and the system clears memory
    for the next tensor, which takes a sixth of the time of a large network. Here freed memory stays with the
    process, up to 2 GiB at the end of the heap. Other C libraries and old versions of glibc, whose thresholds are
    at most 32 MiB, stay as they are.

    Args:
        threads: number of threads; None stands for OMP_NUM_THREADS if set, else for one per physical core that this
            process may use (see `available_cores`).
    """
    if threads is not None or "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads or available_cores())
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt and mallopt(M_MMAP_THRESHOLD, 2**30):
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def find_device(name: str | torch.device | None) -> torch.device:
    """Return the device with this name; for None, the GPU if there is one, else the CPU.

    Raises:
        RefineError: the device does not exist or cannot be used.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0].split(". ")[0]
        raise RefineError(f"device {name}: cannot be used ({reason}); give cpu, or cuda with a GPU") from error
    return device


@dataclass(frozen=True)
class Processes:
    """Process group of one run, as seen by one of its processes.

    Attributes:
        rank: global rank of this process, 0..count-1; rank 0 writes files.
        count: number of processes on all machines.
        device: device of this process.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over all processes, elementwise and in place."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def any(self, *flags: bool) -> list[bool]:
        """Return, for each flag, whether it is set in any process; one all-reduce."""
        if self.count == 1:
            return list(flags)
        values = torch.tensor([float(f) for f in flags], device=self.device)
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return [v > 0 for v in values.tolist()]

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes in rank order; the values must be picklable."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Wait until all processes have called this method."""
        if self.count > 1:
            dist.barrier()


def is_first() -> bool:
    """Return whether this process has rank 0 and writes files; works outside a process group too."""
    return int(os.environ.get("RANK", 0)) == 0


@contextmanager
def processes(device: str = "auto") -> Iterator[Processes]:
    """Join the process group that torchrun started; without torchrun, yield a group of this process alone.

    Args:
        device: "cpu", "cuda", or "auto" for the GPUs if there are any; another one only without torchrun.

    A nested call reuses the outer group: joining twice in one run could reach addresses that the other processes
    have left.

    Raises:
        RefineError: `device` is "cuda" and there is no GPU, or a machine has more processes than GPUs.
    """
    if device not in ("auto", "cpu", "cuda"):
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise RefineError(f"device {device}: under torchrun each process takes its own GPU; give cuda or cpu")
        yield Processes(0, 1, find_device(device))
        return
    cuda = torch.cuda.is_available() if device == "auto" else device == "cuda"
    local = int(os.environ.get("LOCAL_RANK", 0))
    if cuda and local >= torch.cuda.device_count():
        raise RefineError(
            f"device: process {local} of this machine has no GPU of its own ({torch.cuda.device_count()} "
            f"found); start at most one process per GPU, or give --device cpu"
        )
    own = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(own)
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count == 1:
        yield Processes(0, 1, own)
        return
    if dist.is_initialized():
        yield Processes(dist.get_rank(), count, own)
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    try:
        yield Processes(dist.get_rank(), count, own)
        dist.barrier()  # no process leaves while another still sends
    finally:
        dist.destroy_process_group()
