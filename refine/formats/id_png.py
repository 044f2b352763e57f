"""PNGs whose colours are segment ids: id = R + 256 G + 65536 B, 0 = void."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from refine.errors import RefineError
from refine.formats.images import MAX_PIXELS
from refine.ops.runs import run_lengths, run_starts

_BEGIN = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
_END = b"IEND\xaeB`\x82"
"""How every whole PNG ends; the decoder alone would make up the rest of a file that was cut off."""


def read_ids(path: str | Path) -> np.ndarray:
    """Segment ids of an id-PNG: [H, W] int32.

    Raises:
        RefineError: missing, damaged, cut off, or not an RGB PNG of 8 bits.
    """
    bgr = _decode(path)
    if bgr.ndim != 3 or bgr.dtype != np.uint8:
        raise RefineError(f"{path}: is not an RGB PNG of 8 bits; write id = R + 256 G + 65536 B")
    ids = bgr[..., 2].astype(np.int32)
    ids += bgr[..., 1].astype(np.int32) << 8
    ids += bgr[..., 0].astype(np.int32) << 16
    return ids


def read_gray(path: str | Path) -> np.ndarray:
    """A PNG of one channel of 8 or 16 bits: [H, W] int32.

    Raises:
        RefineError: missing, damaged, cut off, or of several channels.
    """
    values = _decode(path)
    if values.ndim != 2:
        raise RefineError(f"{path}: is not a PNG of one channel without a palette; write it in grey")
    return values.astype(np.int32)


def png_size(path: str | Path) -> tuple[int, int]:
    """(height, width) that the head of a PNG claims; nothing else is read.

    Raises:
        RefineError: missing, or no PNG.
    """
    try:
        with open(path, "rb") as file:
            return _claimed_size(file.read(24), path)
    except OSError as error:
        raise _unreadable(path, error) from error


def _claimed_size(head: bytes, path: str | Path) -> tuple[int, int]:
    if len(head) < 24 or not head.startswith(_BEGIN):
        raise RefineError(f"{path}: is no PNG, or cut off; write it again")
    return int.from_bytes(head[20:24], "big"), int.from_bytes(head[16:20], "big")


def _unreadable(path: str | Path, error: OSError) -> RefineError:
    return RefineError(f"{path}: cannot be read ({error.strerror}); check the folder of segments")


def _decode(path: str | Path) -> np.ndarray:
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise _unreadable(path, error) from error
    height, width = _claimed_size(data[:24].tobytes(), path)
    if height * width > MAX_PIXELS:
        raise RefineError(f"{path}: claims {width} × {height} pixels, more than {MAX_PIXELS}; write it again")
    whole = data[-len(_END) :].tobytes() == _END
    decoded = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if whole else None
    if decoded is None:
        raise RefineError(f"{path}: is damaged or cut off; write it again")
    return decoded


@dataclass(frozen=True)
class Runs:
    """A map as R horizontal runs of equal ids, which is some fifty times shorter.

    Attributes:
        ids: [R] int32.
        start: [R] int64, flat index of the first pixel; a run ends with its row.
        length: [R] int64, pixels.
        size: (H, W).
    """

    ids: np.ndarray
    start: np.ndarray
    length: np.ndarray
    size: tuple[int, int]

    @classmethod
    def of(cls, ids: np.ndarray) -> Runs:
        """Take a map [H, W] int32 apart."""
        start = run_starts(torch.from_numpy(ids))
        length = run_lengths(start, ids.size)
        return cls(ids.reshape(-1)[start.numpy()], start.numpy(), length.numpy(), (ids.shape[0], ids.shape[1]))

    def spread(self, values: np.ndarray) -> np.ndarray:
        """One value per run, [R] -> the map of them, [H, W]."""
        return np.repeat(values, self.length).reshape(self.size)

    def find(self, known: np.ndarray) -> np.ndarray:
        """Place of each run's id in `known` ([S], unique): [R] int64, -1 where it is not there."""
        if not len(known):
            return np.full(len(self.ids), -1)
        order = np.argsort(known)
        place = order[np.searchsorted(known[order], self.ids).clip(max=len(known) - 1)]
        return np.where(known[place] == self.ids, place, -1)
