"""Count of starts on a cluster. This module does not import torch, so that its process starts at once."""

from __future__ import annotations

from collections import Counter


class Starts:
    """Actor that counts the starts of blocks and items that have not ended."""

    def __init__(self) -> None:
        self._open: Counter[bytes] = Counter()

    def start(self, key: bytes) -> int:
        """Count a start, and return the number of earlier ones."""
        self._open[key] += 1
        return self._open[key] - 1

    def end(self, *keys: bytes) -> None:
        for key in keys:
            self._open.pop(key, None)
