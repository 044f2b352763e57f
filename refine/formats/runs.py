"""Id maps as runs of equal pixels: some thousand where there are some hundred thousand pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Runs:
    """A map of segment ids in raster order, cut where the id changes (and perhaps at other places).

    Attributes:
        starts: [R] int64, index of each run's first pixel, rising from 0.
        ids: [R] int64, id of each run's pixels.
        shape: (height, width) in pixels; at least one pixel.
    """

    starts: np.ndarray
    ids: np.ndarray
    shape: tuple[int, int]

    @classmethod
    def from_map(cls, ids: np.ndarray) -> Runs:
        """Cut a map [H, W] of integers."""
        flat = ids.ravel()
        starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
        return cls(starts, flat[starts].astype(np.int64), (ids.shape[0], ids.shape[1]))

    def to_map(self) -> np.ndarray:
        """The map [H, W] int32."""
        return np.repeat(self.ids.astype(np.int32), self.lengths()).reshape(self.shape)

    def lengths(self) -> np.ndarray:
        """[R] int64, pixels of each run."""
        return np.diff(self.starts, append=self.shape[0] * self.shape[1])

    def areas(self) -> tuple[np.ndarray, np.ndarray]:
        """The ids that occur, rising [S] int64, and the pixels of each [S] int64."""
        ids, place = np.unique(self.ids, return_inverse=True)
        return ids, np.bincount(place, weights=self.lengths()).astype(np.int64)
