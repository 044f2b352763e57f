"""Named parts of the forward pass, displayed by `torch.profiler` and measured by `refine benchmark`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.profiler import record_function

PREFIX = "refine: "
"""Prefix of every span's name in the profiler, which distinguishes it from torch's own."""
Listener = Callable[[str], Callable[[], None]]
"""Function that is called with the name of a span that begins, and returns what is called when the span ends."""
_listeners: list[Listener] = []


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call a listener for all spans that begin inside the context, in any thread."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


class span(record_function):  # a context, named like a function
    """Context of a named part, which an active profiler records.

    Args:
        name: name of the part.
    """

    def __init__(self, name: str) -> None:
        super().__init__(PREFIX + name)
        self.stage = name

    def __enter__(self) -> span:
        self._ends = [listener(self.stage) for listener in tuple(_listeners)]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for end in self._ends:
            end()
        super().__exit__(*error)
