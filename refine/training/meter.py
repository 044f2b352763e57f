"""Means of losses and times between two lines of a training log."""

from __future__ import annotations

import torch
from torch import Tensor

from refine.runtime import Processes


class Meter:
    """Means of losses and times since the last `take`, over all processes.

    Args:
        group: processes that train together.
        batch_size: global number of images of an update.
    """

    def __init__(self, group: Processes, batch_size: int) -> None:
        self.group, self.batch_size = group, batch_size
        self._clear()

    def _clear(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.data_time = self.compute_time = 0.0
        self.updates = 0

    def add(self, values: dict[str, Tensor], data_time: float, compute_time: float) -> None:
        """Add the losses (scalars) of an update, and its seconds of waiting for data and of computing."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach()
        self.data_time += data_time
        self.compute_time += compute_time
        self.updates += 1

    def take(self) -> dict[str, float]:
        """Return the means over the updates and processes since the last call."""
        totals = self.group.sum(torch.stack([v.float() for v in self.sums.values()]))
        means = (totals / (self.updates * self.group.count)).tolist()
        values = dict(zip(self.sums, means, strict=True))
        values["images_per_second"] = self.updates * self.batch_size / (self.data_time + self.compute_time)
        values["data_seconds"] = self.data_time / self.updates
        values["compute_seconds"] = self.compute_time / self.updates
        self._clear()
        return values
