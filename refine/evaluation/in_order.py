"""Work in threads, with results in order.

`concurrent.futures` does the same, but importing it, with its `logging`, takes as long as evaluating 20 images.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def in_order(tasks: Sequence[Task], work: Callable[[Task], Result], threads: int) -> Iterator[Result]:
    """Yield the result of each task, in the order of the tasks.

    Threads begin the tasks in order and run ahead of the caller until a few results wait for it. When the caller
    stops or gets an error, no further task begins, and the running ones are waited for.

    Args:
        tasks: arguments of `work`.
        work: called once for each task, in any thread.
        threads: number of threads, at least 1.

    Raises:
        BaseException: what `work` raised, in place of the first result that it could not return.
    """
    waiting: dict[int, tuple[Result, None] | tuple[None, BaseException]] = {}  # results by number of the task
    numbers, changed = iter(range(len(tasks))), threading.Condition()

    def run() -> None:
        while True:
            with changed:
                while len(waiting) >= 4 * threads:
                    changed.wait()
                n = next(numbers, None)
            if n is None:
                return
            outcome: tuple[Result, None] | tuple[None, BaseException]
            try:
                outcome = work(tasks[n]), None
            except BaseException as error:  # the caller gets it
                outcome = None, error
            with changed:
                waiting[n] = outcome
                changed.notify_all()

    running: list[threading.Thread] = []
    try:
        for _ in range(min(threads, len(tasks))):
            thread = threading.Thread(target=run)
            thread.start()
            running.append(thread)
        for n in range(len(tasks)):
            with changed:
                while n not in waiting:
                    changed.wait()
                result, error = waiting.pop(n)
                changed.notify_all()
            if error is not None:
                raise error
            yield result  # type: ignore[misc]  # a result, as there is no error
    finally:
        with changed:
            numbers = iter(())
            waiting.clear()
            changed.notify_all()
        for thread in running:
            thread.join()
