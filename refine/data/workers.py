"""Reading of samples in worker processes that neither block their run nor outlive it.

A batch is passed as one block of shared memory, so it needs one file descriptor for any number of tensors. A
`RefineError` in a worker is raised unchanged in the reading process.
"""

from __future__ import annotations

import ctypes
import io
import pickle
import signal
import sys
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from refine.errors import RefineError

T = TypeVar("T")
ALIGNMENT = 16
"""Alignment of tensors within a block, in bytes."""


class Samples(Protocol):
    """Collection of samples that are read by key."""

    def __getitem__(self, key: Any, /) -> Any: ...


def read_in_workers(
    samples: Samples,
    batches: Iterable[Sequence[Any]],
    collate: Callable[[list[Any]], T],
    workers: int,
    pin_memory: bool = False,
) -> Generator[T, None, None]:
    """Yield `collate([samples[key] for key in keys])` for each `keys` of `batches`, in order.

    Close the generator (`contextlib.closing`) to end the workers immediately.

    Args:
        samples: samples, read in the workers.
        batches: lists of keys; may be endless.
        collate: function that joins a list of samples to a batch; its result is pickled.
        workers: number of worker processes; 0 reads in this process.
        pin_memory: whether to return tensors in page-locked memory, for copies to a GPU.

    Raises:
        RefineError: a sample raised it, or a worker was killed or ran out of file descriptors or memory.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # the user sets the number of workers
        loader = DataLoader(
            _Caught(samples),
            batch_sampler=batches,  # type: ignore[arg-type]  # any iterable of keys works
            num_workers=workers,
            collate_fn=_Collate(collate, packed=workers > 0),
            pin_memory=pin_memory,
            worker_init_fn=_start_worker,
        )
    with worker_failures(receiving=workers > 0):
        iterator = iter(loader)
    try:
        while True:
            with worker_failures(receiving=workers > 0):
                batch = next(iterator, None)
            if batch is None:
                return
            if isinstance(batch, RefineError):
                raise batch
            yield batch.unpack() if isinstance(batch, _Packed) else batch
    finally:
        if workers:
            _end_workers(iterator)


@contextmanager
def worker_failures(receiving: bool = False) -> Iterator[None]:
    """Convert torch's errors about workers that died or cannot be reached to RefineError.

    Torch may raise the death of a worker at any point of the program, not only while waiting for a batch.

    Args:
        receiving: whether the block starts workers or waits for a batch, so that OS errors come from them too.
    """
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        text = str(error).split("\n")[0]
        lost = text.startswith(("DataLoader worker", "Too many open files"))
        if not lost and (not receiving or isinstance(error, RuntimeError) or text.startswith("Caught ")):
            raise
        raise RefineError(
            f"workers: a process that reads images was lost ({text or type(error).__name__}); free memory, raise "
            f"the limit of open files (`ulimit -n`), or use fewer workers"
        ) from error


class _Caught(Dataset):
    """Samples in which a RefineError raised by reading a sample replaces the sample."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.samples[key]
        except RefineError as error:
            return error


@dataclass
class _Collate:
    """Collate function that returns a batch, or the first error among the samples."""

    collate: Callable[[list[Any]], Any]
    packed: bool

    def __call__(self, samples: list[Any]) -> Any:
        for sample in samples:
            if isinstance(sample, RefineError):
                return sample
        batch = self.collate(samples)
        if not self.packed:
            return batch
        try:
            return _Packed.pack(batch)
        except (RuntimeError, OSError) as error:
            return RefineError(f"workers: cannot share memory ({error}); use fewer workers")


@dataclass
class _Packed:
    """Pickled object whose tensors are stored in one block.

    Attributes:
        content: pickled object, with (dtype, shape, offset in bytes) in place of each tensor.
        block: Tensor[bytes] uint8 in shared memory, contents of all tensors.
    """

    content: bytes
    block: Tensor

    @classmethod
    def pack(cls, value: Any) -> _Packed:
        stream = io.BytesIO()
        pickler = _Pickler(stream)
        pickler.dump(value)
        block = torch.empty(pickler.size, dtype=torch.uint8).share_memory_()
        for tensor, offset in pickler.tensors:
            block[offset : offset + tensor.nbytes] = tensor.reshape(-1).view(torch.uint8)
        return cls(stream.getvalue(), block)

    def unpack(self) -> Any:
        return _Unpickler(io.BytesIO(self.content), self.block).load()

    def pin_memory(self) -> _Packed:
        return _Packed(self.content, self.block.pin_memory())


class _Pickler(pickle.Pickler):
    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[tuple[Tensor, int]] = []
        self.size = 0

    def persistent_id(self, value: Any) -> tuple[torch.dtype, torch.Size, int] | None:
        if not isinstance(value, Tensor):
            return None
        offset = self.size
        self.tensors.append((value.contiguous(), offset))
        self.size += -(-value.nbytes // ALIGNMENT) * ALIGNMENT
        return value.dtype, value.shape, offset


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, block: Tensor) -> None:
        super().__init__(stream)
        self.block = block

    def persistent_load(self, reference: tuple[torch.dtype, torch.Size, int]) -> Tensor:
        dtype, shape, offset = reference
        size = shape.numel() * dtype.itemsize
        return self.block[offset : offset + size].view(dtype).view(shape)


def _start_worker(number: int) -> None:
    """Configure signals so that a worker ends with its run, and not before.

    Ctrl-C and the end of a job (SIGTERM) reach all processes of a run, but the reading process still needs its
    workers to finish its step. A second SIGTERM or the death of the reading process ends a worker.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _ignore_once)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _ignore_once(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)


def _end_workers(iterator: Any) -> None:
    """Shut workers down as torch does, which waits a few seconds, and kill those that are still alive."""
    iterator._shutdown_workers()
    for worker in iterator._workers:
        if worker.is_alive():
            worker.kill()
            worker.join()
