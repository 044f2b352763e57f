"""Id maps as runs of equal pixels: some thousand where there are some hundred thousand pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Runs:
    """A map of segment ids as horizontal runs in raster order; every run ends with its row at the latest.

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
        """Return the runs of a map [H, W] of integers."""
        begins = np.ones(ids.shape, bool)
        np.not_equal(ids[:, 1:], ids[:, :-1], out=begins[:, 1:])
        starts = np.flatnonzero(begins)
        return cls(starts, ids.reshape(-1)[starts].astype(np.int64), (ids.shape[0], ids.shape[1]))

    def to_map(self) -> np.ndarray:
        """Return the map [H, W] int32."""
        return self.spread(self.ids.astype(np.int32))

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Give every pixel the value of its run: [R] -> [H, W]."""
        return np.repeat(values, self.lengths()).reshape(self.shape)

    def lengths(self) -> np.ndarray:
        """Return [R] int64, pixels of each run."""
        return np.diff(self.starts, append=self.shape[0] * self.shape[1])

    def areas(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids that occur, rising [S] int64, and the pixels of each [S] int64."""
        ids, place = np.unique(self.ids, return_inverse=True)
        return ids, np.bincount(place, weights=self.lengths()).astype(np.int64)

    def find(self, known: np.ndarray) -> np.ndarray:
        """Return the place of each run's id in `known` ([S], unique): [R] int64, -1 where it is absent."""
        if not len(known):
            return np.full(len(self.ids), -1)
        order = np.argsort(known)
        place = order[np.searchsorted(known[order], self.ids).clip(max=len(known) - 1)]
        return np.where(known[place] == self.ids, place, -1)
