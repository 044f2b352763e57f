"""How a training is told to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """A request to stop.

    Attributes:
        signal: the signal that asked for it, or None.
        step: number of updates after which the run obeyed, or None if it ended before.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.step: int | None = None


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Note the first SIGTERM or Ctrl-C; a second one acts as usual."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may handle signals
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def handle(number: int, frame: FrameType | None) -> None:
        stop.signal = signal.Signals(number)
        signal.signal(number, before[stop.signal])

    for number in SIGNALS:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number in SIGNALS:
            signal.signal(number, before[number])
