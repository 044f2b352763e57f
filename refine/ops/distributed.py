"""Counts that make a loss over several processes the loss over their joint batch."""

import torch.distributed as dist
from torch import Tensor


def mean_over_processes(count: Tensor) -> Tensor:
    """The mean of a count over all processes; the count itself in a single process.

    A sum divided by it, averaged over processes as DistributedDataParallel averages gradients, is the
    joint sum over the joint count. Every process must call it equally often.

    Args:
        count: Tensor[] on the process's device.

    Returns:
        Tensor[] float32, at least 1 / processes so that it can be divided by.
    """
    count = count.detach().float()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(count)
        count = count / dist.get_world_size()
    return count.clamp(min=1.0 / _world_size())


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
