"""Compilation of Python loops to machine code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function with numba; it runs without the GIL.

    The machine code is cached for later processes if numba finds a writable folder (beside the source, or the
    user's cache).
    """
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no writable folder
        return njit(nogil=True)(function)
