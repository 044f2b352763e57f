"""One training process among others: its device, and what all of them agree on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from refine.cores import available_cores
from refine.errors import RefineError


def set_threads(count: int | None) -> None:
    """Set how many CPU threads torch uses in this process.

    Args:
        count: number of threads; None takes one per physical core that this process may use (see
            `available_cores`), unless OMP_NUM_THREADS says otherwise.
    """
    if count is not None or "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(count or available_cores())


def find_device(name: str | torch.device | None) -> torch.device:
    """The device of this name; without one, the GPU if there is one.

    Raises:
        RefineError: there is no such device, or it cannot be used.
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
    """The processes of one run, as seen by one of them.

    Attributes:
        rank: of this process, 0..count-1; 0 writes files.
        count: how many there are, on all machines together.
        device: of this process.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum over all processes, elementwise."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether it is set in any process; one exchange."""
        if self.count == 1:
            return list(flags)
        values = torch.tensor([float(f) for f in flags], device=self.device)
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return [v > 0 for v in values.tolist()]

    def gather(self, value: Any) -> list[Any]:
        """The value of every process, in the order of ranks; anything that pickles."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Return once every process is here."""
        if self.count > 1:
            dist.barrier()


def is_first() -> bool:
    """Whether this process writes what all have found, also where no group has been joined."""
    return int(os.environ.get("RANK", 0)) == 0


@contextmanager
def processes(device: Literal["auto", "cpu", "cuda"] = "auto") -> Iterator[Processes]:
    """Join the processes that torchrun started; without torchrun there is this one alone.

    Inside another `processes` the group is that one's: joining twice in one run could reach addresses that the
    others have left.

    Raises:
        RefineError: "cuda" where there is no GPU, or more processes than GPUs on a machine.
    """
    cuda = torch.cuda.is_available() if device == "auto" else device == "cuda"
    local = int(os.environ.get("LOCAL_RANK", 0))
    if cuda and local >= torch.cuda.device_count():
        raise RefineError(
            f"device: process {local} of this machine has no GPU of its own ({torch.cuda.device_count()} "
            f"found); start at most one process per GPU, or give --device cpu"
        )
    mine = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(mine)
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count == 1:
        yield Processes(0, 1, mine)
        return
    if dist.is_initialized():
        yield Processes(dist.get_rank(), count, mine)
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    try:
        yield Processes(dist.get_rank(), count, mine)
        dist.barrier()  # nobody leaves while another still sends
    finally:
        dist.destroy_process_group()
