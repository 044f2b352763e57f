"""Loss normalisation over the global batch of several processes."""

import torch.distributed as dist
from torch import Tensor


def mean_over_processes(count: Tensor) -> Tensor:
    """Return the mean of a count over all processes; in a single process, the count itself.

    DistributedDataParallel averages gradients over processes. If every process divides its sum by this mean, the
    average is the global sum over the global count. All processes must call it the same number of times.

    Args:
        count: Tensor[] on the process's device.

    Returns:
        Tensor[] float32, at least 1 / (number of processes), so that it can be a divisor.
    """
    count = count.detach().float()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(count)
        count = count / dist.get_world_size()
    return count.clamp(min=1.0 / _world_size())


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
