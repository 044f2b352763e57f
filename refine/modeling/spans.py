"""Named parts of the forward pass, as `torch.profiler` shows them and `refine benchmark` sums them up."""

from __future__ import annotations

from torch.profiler import record_function

PREFIX = "refine: "
"""Opens the name of every span, which tells it from those of torch itself."""


def span(name: str) -> record_function:
    """Return a context that is recorded under a name wherever a profiler listens, and does nothing else."""
    return record_function(PREFIX + name)
