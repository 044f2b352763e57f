"""Areas and boxes of the regions of a map."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refine.formats.runs import Runs


@dataclass(frozen=True)
class Regions:
    """Areas and boxes of the V distinct values of a map.

    Attributes:
        values: [V] int64, distinct values, increasing.
        area: [V] int64, pixels of each value.
        boxes: [V, 4] int64, tight x, y, width, height in pixels of each value.
        runs: the map as R runs.
        index: [R] int64, index of the value of each run.
    """

    values: np.ndarray
    area: np.ndarray
    boxes: np.ndarray
    runs: Runs
    index: np.ndarray

    @classmethod
    def of(cls, runs: Runs) -> Regions:
        """Measure the regions of a map."""
        values, index = np.unique(runs.ids, return_inverse=True)
        order = np.argsort(index, kind="stable")
        first = np.searchsorted(index[order], np.arange(len(values)))
        row, left = np.divmod(runs.starts[order], runs.shape[1])
        length = runs.lengths()[order]
        x, y = np.minimum.reduceat(left, first), np.minimum.reduceat(row, first)
        width, height = np.maximum.reduceat(left + length, first) - x, np.maximum.reduceat(row, first) + 1 - y
        return cls(values, np.add.reduceat(length, first), np.stack([x, y, width, height], 1), runs, index)
