"""Tests that workers pass on errors of samples and do not outlive their run."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pytest
import torch
from torch import Tensor

from refine.data.workers import read_in_workers
from refine.errors import RefineError


@dataclass
class Sample:
    number: int
    tensors: list[Tensor]


class Numbers:
    """Samples whose tensors of several kinds contain n; some samples fail."""

    def __init__(self, bad: int = -1, deadly: int = -1, copies: int = 1) -> None:
        self.bad, self.deadly, self.copies = bad, deadly, copies

    def __getitem__(self, n: int) -> Sample:
        if n == self.bad:
            raise RefineError(f"{n}.png: is damaged")
        if n == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        whole = torch.full((4, 3), float(n))
        tensors = [whole, whole.T, whole > 1, torch.tensor(n), torch.empty(0, 4), whole.byte()[:, 1]]
        return Sample(n, tensors * self.copies)


def batches(count: int, size: int = 2) -> Iterator[list[int]]:
    return (list(range(n, n + size)) for n in range(0, count, size))


def test_samples_are_passed_unchanged() -> None:
    alone, parallel = (list(read_in_workers(Numbers(), batches(12), list, workers)) for workers in (0, 2))
    assert [[s.number for s in batch] for batch in parallel] == list(batches(12))
    for one, other in zip(chain(*alone), chain(*parallel), strict=True):
        for a, b in zip(one.tensors, other.tensors, strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)


@pytest.mark.parametrize("workers", [0, 2])
def test_error_of_a_sample_is_raised_unchanged(workers: int) -> None:
    read = read_in_workers(Numbers(bad=5), batches(12), list, workers)
    assert [[s.number for s in next(read)] for _ in range(2)] == [[0, 1], [2, 3]]
    with pytest.raises(RefineError, match=r"^5\.png: is damaged$"):
        next(read)
    assert not multiprocessing.active_children()


def test_killed_worker_raises() -> None:
    with pytest.raises(RefineError, match=r"workers: a process that reads images was lost .*fewer workers"):
        list(read_in_workers(Numbers(deadly=6), batches(12), list, 2))
    assert not multiprocessing.active_children()


def test_a_batch_needs_one_file_descriptor() -> None:
    read = read_in_workers(Numbers(copies=50), batches(60), list, 2)
    with closing(read):
        kept = [next(read)]
        before = len(os.listdir("/proc/self/fd"))
        kept += [next(read) for _ in range(20)]
        assert len(os.listdir("/proc/self/fd")) <= before + 2 * len(kept)
    assert not multiprocessing.active_children()


def test_workers_survive_one_signal_and_end_on_closing() -> None:
    read = read_in_workers(Numbers(), batches(10_000), list, 2)
    with closing(read):
        for _ in range(2):  # a batch from each: both have started
            next(read)
        children = multiprocessing.active_children()
        assert len(children) == 2
        for child in children:
            os.kill(child.pid, signal.SIGTERM)
            os.kill(child.pid, signal.SIGINT)
        for _ in range(30):
            next(read)
    assert not multiprocessing.active_children()


def test_workers_die_with_a_killed_run(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    run = os.fork()
    if run == 0:
        read = read_in_workers(Numbers(), batches(10_000), list, 2)
        next(read)
        pids.write_text(" ".join(str(child.pid) for child in multiprocessing.active_children()))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(run, 0)
    deadline = time.monotonic() + 30
    alive = [int(pid) for pid in pids.read_text().split()]
    assert len(alive) == 2
    while alive and time.monotonic() < deadline:
        alive = [pid for pid in alive if is_running(pid)]
        time.sleep(0.02)
    assert not alive


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
