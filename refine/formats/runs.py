"""Run-length representation of id maps: a few thousand runs for hundreds of thousands of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Runs(NamedTuple):
    """Map of segment ids as horizontal runs in raster order; no run crosses the end of a row.

    Attributes:
        starts: [R] int64, flat index of the first pixel of each run, increasing from 0.
        ids: [R] int64, segment id of each run.
        shape: (height, width) in pixels, both at least 1.
    """

    starts: np.ndarray
    ids: np.ndarray
    shape: tuple[int, int]

    @classmethod
    def from_map(cls, ids: np.ndarray) -> Runs:
        """Convert a map, [H, W] integer, to runs."""
        begins = np.ones(ids.shape, bool)
        np.not_equal(ids[:, 1:], ids[:, :-1], out=begins[:, 1:])
        starts = np.flatnonzero(begins)
        return cls(starts, ids.reshape(-1)[starts].astype(np.int64), (ids.shape[0], ids.shape[1]))

    @classmethod
    def stacked(cls, bands: Sequence[Runs]) -> Runs:
        """Join maps of the same width, from the top."""
        heights, width = [band.shape[0] for band in bands], bands[0].shape[1]
        tops = np.cumsum([0, *heights])
        starts = np.concatenate([band.starts + top * width for band, top in zip(bands, tops[:-1], strict=True)])
        return cls(starts, np.concatenate([band.ids for band in bands]), (int(tops[-1]), width))

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Assign to every pixel the value of its run: [R] -> [H, W]."""
        return np.repeat(values, self.lengths()).reshape(self.shape)

    def lengths(self) -> np.ndarray:
        """Return the length of each run in pixels, [R] int64."""
        return np.diff(self.starts, append=self.shape[0] * self.shape[1])

    def areas(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids that occur, sorted, and the pixels of each; both [S] int64."""
        ids, index = np.unique(self.ids, return_inverse=True)
        return ids, np.bincount(index, weights=self.lengths()).astype(np.int64)

    def find(self, known: np.ndarray) -> np.ndarray:
        """Return the index of each run's id in `known` ([S] int64, unique): [R] int64, -1 where it is absent."""
        if not len(known):
            return np.full(len(self.ids), -1)
        order = np.argsort(known)
        index = order[np.searchsorted(known[order], self.ids).clip(max=len(known) - 1)]
        return np.where(known[index] == self.ids, index, -1)
