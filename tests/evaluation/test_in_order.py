"""Results of threads come in the order of the tasks."""

import threading
import time

import pytest

from refine.evaluation.in_order import in_order


@pytest.mark.parametrize("threads", [1, 3, 50])
@pytest.mark.parametrize("count", [0, 1, 40])
def test_results_come_in_the_order_of_the_tasks(threads, count):
    def work(n):
        time.sleep((n * 7 % 5) / 5000)  # later tasks may end earlier
        return n * n

    before = threading.active_count()
    assert list(in_order(range(count), work, threads)) == [n * n for n in range(count)]
    assert threading.active_count() == before


def test_all_threads_work_at_the_same_time():
    meeting = threading.Barrier(3, timeout=10)
    assert len(list(in_order(range(6), lambda n: meeting.wait(), 3))) == 6


def test_threads_run_a_few_tasks_ahead_of_the_caller():
    begun, enough = [], threading.Semaphore(0)

    def work(n):
        begun.append(n)
        enough.release()

    results = in_order(range(1000), work, 2)
    next(results)
    for _ in range(9):  # the first, and 4 for each thread that wait for the caller
        assert enough.acquire(timeout=10)
    assert len(begun) <= 11  # each thread may have begun one when there was still room
    results.close()
    assert len(begun) <= 11


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_the_first_failure_in_order_is_raised_after_the_results_before_it(kind):
    begun, later, before = [], threading.Event(), threading.active_count()

    def work(n):
        begun.append(n)
        if n == 3:
            later.wait(10)  # fails after a later task has failed
            raise kind(n)
        if n == 4:
            later.set()
            raise kind(n)
        return n

    results = in_order(range(1000), work, 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(kind, match="3"):
        next(results)
    assert len(begun) < 30
    assert threading.active_count() == before
