"""Loops as machine code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile by numba; runs without Python's lock. The machine code is kept for the next process where numba
    finds a folder to write (beside the source, or in the user's cache)."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no such folder
        return njit(nogil=True)(function)
