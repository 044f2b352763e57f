"""Named parts of the forward pass, displayed by `torch.profiler` and timed by `refine benchmark`."""

from __future__ import annotations

from torch.profiler import record_function

PREFIX = "refine: "
"""Prefix of every span's name, which distinguishes it from torch's own."""


def span(name: str) -> record_function:
    """Return a context that an active profiler records under a name."""
    return record_function(PREFIX + name)
