"""Semantic map of a large image in a temporary file."""

from __future__ import annotations

import errno
import os
import tempfile
from io import FileIO
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from refine.files import write_error

LABEL, CONFIDENCE = np.dtype("<i2"), np.dtype("<f4")


class SemanticFile:
    """Semantic map and its confidence, written by windows and read by rows; 6 bytes per pixel.

    The files have no name, so they vanish with the object, or the process.

    Args:
        size: (height, width) of the image in pixels.
        folder: folder of the files; None stands for that of temporary files.

    Raises:
        WriteError: here and in `write`, if the disk is full or the folder cannot be written.
    """

    def __init__(self, size: tuple[int, int], folder: str | Path | None = None) -> None:
        self.width = size[1]
        self._folder = Path(folder or tempfile.gettempdir())
        try:
            self._files = [(kind, _unnamed(self._folder)) for kind in (LABEL, CONFIDENCE)]
        except OSError as error:
            raise write_error(self._folder, error) from error

    def write(self, top: int, left: int, sem_seg: Tensor, confidence: Tensor) -> None:
        """Write a part of the map: Tensor[h, w] int64 and Tensor[h, w] float; (top, left) is its first pixel."""
        try:
            for (kind, file), values in zip(self._files, (sem_seg, confidence), strict=True):
                for row, line in enumerate(values.cpu().numpy().astype(kind), top):
                    file.seek((row * self.width + left) * kind.itemsize)
                    if file.write(line.tobytes()) != line.nbytes:  # a full disk takes a part of a row
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise write_error(self._folder, error) from error

    def read(self, top: int, bottom: int) -> tuple[Tensor, Tensor]:
        """Read rows: Tensor[bottom - top, W] int16 and float32."""
        bands = []
        for kind, file in self._files:
            file.seek(top * self.width * kind.itemsize)
            band = bytearray((bottom - top) * self.width * kind.itemsize)
            file.readinto(band)
            bands.append(torch.from_numpy(np.frombuffer(band, kind).reshape(bottom - top, self.width)))
        return bands[0], bands[1]


def _unnamed(folder: Path) -> FileIO:
    """Open a temporary file without a name or a buffer."""
    return cast(FileIO, tempfile.TemporaryFile(dir=folder, buffering=0))
