"""Signals that stop a training run."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """Request to stop a run.

    Attributes:
        signal: signal that was received, or None.
        step: number of updates after which the run stopped, or None if it did not stop early.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.step: int | None = None


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Record the first SIGTERM or Ctrl-C in the `Stop` yielded; a second one has its default effect."""
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
