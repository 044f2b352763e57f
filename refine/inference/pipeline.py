"""Pipeline over many images: reading, the network, and the work after it overlap.

A job says what is done with one image, in three steps:

    class Drawing(Job[Tensor, Prediction, bytes]):
        def read(self, file): ...            # in threads, a few images ahead
        def predict(self, images): ...       # in the calling thread, a batch of images of one group
        def finish(self, file, read, raw):   # in threads: fusion, drawing, encoding, writing
            ...

    for file, outcome in run_pipeline(files, Drawing()):
        ...                                  # in the calling thread, in the order of the files

`refine.inference.image_job.ImageJob` is the job of `refine predict`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, TypeVar

from refine.cores import available_cores
from refine.formats.image_list import ImageFile
from refine.inference.predictor import GPU_BATCH

READ_AHEAD = 2**25
"""Number of pixels of images in memory above which no further image is read ahead."""

R = TypeVar("R")
P = TypeVar("P")
F = TypeVar("F")


class Job(ABC, Generic[R, P, F]):
    """Work on one image in three steps: what `read`, `predict` and `finish` return is passed to the next.

    An exception of a step is the outcome of its image, and the other images go on.
    """

    @abstractmethod
    def read(self, file: ImageFile) -> R:
        """Read and decode an image; called in a thread."""

    @abstractmethod
    def predict(self, images: list[R]) -> list[P]:
        """Run the network on images of one group; called in the thread that iterates."""

    @abstractmethod
    def finish(self, file: ImageFile, image: R, prediction: P) -> F:
        """Do the rest, such as fusion and writing; called in a thread."""

    def group(self, image: R) -> Hashable:
        """Return a value that is equal for images that may share a batch."""
        return None

    def pixels(self, image: R) -> int:
        """Return the number of pixels that an image keeps in memory."""
        return 0

    def discard(self, finished: F) -> None:  # nothing to undo by default
        """Undo `finish` for an image whose outcome was not used, because the run was stopped."""


@dataclass(frozen=True)
class Workers:
    """Numbers of images in the steps of a pipeline at a time.

    Attributes:
        batch: maximum number of images per call of `predict`.
        readers, finishers: number of threads for `read` and `finish`.
    """

    batch: int = 1
    readers: int = 1
    finishers: int = 1

    @classmethod
    def on(cls, device: str, batch: int | None = None) -> Workers:
        """Return the numbers for a type of device, "cpu" or another.

        On a CPU the network uses all cores, a larger batch would only cost memory, and more threads only time.
        """
        if device == "cpu":
            return cls(batch or 1)
        threads = min(8, available_cores())
        return cls(batch or GPU_BATCH, threads, threads)


def run_pipeline(
    files: Iterable[ImageFile], job: Job[R, P, F], workers: Workers | None = None
) -> Iterator[tuple[ImageFile, F | Exception]]:
    """Yield each image with the result of `finish`, or with the exception that a step raised, in order.

    On KeyboardInterrupt and SystemExit, the images that have passed the network are finished and yielded first.
    If the iteration ends early for another reason, `discard` is called for those that were not yielded and for the
    last one, whose consumer may not have used it.

    Args:
        files: images; a generator is read a few images ahead.
        job: steps of the work.
        workers: sizes of the pipeline; one image per step if None.
    """
    with closing(_Pipeline(files, job, workers or Workers())) as pipeline:
        yield from pipeline.outcomes()


@dataclass
class _Image(Generic[R, F]):
    """One image on its way: `finishing` is None until it has passed the network, or failed before."""

    file: ImageFile
    reading: Future[R]
    finishing: Future[F] | None = None


@dataclass
class _Pipeline(Generic[R, P, F]):
    """State of a pipeline: images in order, from the first whose outcome was not yielded to the last being read."""

    files: Iterable[ImageFile]
    job: Job[R, P, F]
    workers: Workers
    images: deque[_Image[R, F]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self._left = iter(self.files)
        self._readers = ThreadPoolExecutor(self.workers.readers, "read")
        self._finishers = ThreadPoolExecutor(self.workers.finishers, "finish")

    def outcomes(self) -> Iterator[tuple[ImageFile, F | Exception]]:
        """Yield what `run_pipeline` returns."""
        try:
            self._read_ahead()
            while self.images:
                if any(image.finishing is None for image in self.images):
                    yield from self._predict(self._next_batch())
                else:
                    yield from self._first()
                self._read_ahead()
        except (KeyboardInterrupt, SystemExit):
            while self.images:
                if self.images[0].finishing is None:
                    self.images.popleft()
                else:
                    yield from self._first()
            raise

    def _read_ahead(self) -> None:
        """Start reading the images of the next two batches, as far as memory allows."""
        waiting = sum(image.finishing is None for image in self.images)
        wanted = 2 * self.workers.batch + self.workers.readers - 1 - waiting
        for _ in range(wanted):
            if self.images and self._pixels() > READ_AHEAD:
                return
            for file in islice(self._left, 1):
                self.images.append(_Image(file, self._readers.submit(self.job.read, file)))

    def _pixels(self) -> int:
        read = (image.reading for image in self.images if image.reading.done())
        return sum(self.job.pixels(reading.result()) for reading in read if reading.exception() is None)

    def _next_batch(self) -> list[_Image[R, F]]:
        """Return the first image that waits for the network, and others of its group among the next ones."""
        waiting = [image for image in self.images if image.finishing is None]
        batch: list[_Image[R, F]] = []
        for image in waiting[: 2 * self.workers.batch - 1]:
            error = image.reading.exception()
            if error is not None:
                image.finishing = Future()
                image.finishing.set_exception(error)
            elif not batch or self._group(image) == self._group(batch[0]):
                batch.append(image)
            if len(batch) == self.workers.batch:
                break
        return batch

    def _group(self, image: _Image[R, F]) -> Hashable:
        return self.job.group(image.reading.result())

    def _predict(self, batch: Sequence[_Image[R, F]]) -> Iterator[tuple[ImageFile, F | Exception]]:
        """Run the network, and start to finish its outputs when the threads have finished earlier ones."""
        predictions = self._outputs(batch)
        while self._finishing() >= self.workers.finishers and self.images[0].finishing is not None:
            yield from self._first()
        for image, prediction in zip(batch, predictions, strict=True):
            if isinstance(prediction, Exception):
                image.finishing = Future()
                image.finishing.set_exception(prediction)
            else:
                arguments = image.file, image.reading.result(), prediction
                image.finishing = self._finishers.submit(self.job.finish, *arguments)

    def _outputs(self, batch: Sequence[_Image[R, F]]) -> Sequence[P | Exception]:
        """Return the prediction of each image; if a batch fails, its images are predicted one by one."""
        try:
            return self.job.predict([image.reading.result() for image in batch]) if batch else []
        except Exception as error:
            return [error] if len(batch) == 1 else [self._outputs([image])[0] for image in batch]

    def _finishing(self) -> int:
        return sum(image.finishing is not None for image in self.images)

    def _first(self) -> Iterator[tuple[ImageFile, F | Exception]]:
        """Wait until the first image is finished, yield its outcome, and let go of it."""
        image = self.images[0]
        assert image.finishing is not None
        try:
            outcome: F | Exception = image.finishing.result()
        except Exception as error:
            outcome = error
        yield image.file, outcome
        self.images.popleft()

    def close(self) -> None:
        """End the threads, and discard what was finished but not used."""
        for pool in (self._readers, self._finishers):
            pool.shutdown(cancel_futures=True)
        for image in self.images:
            future = image.finishing
            if future is not None and not future.cancelled() and future.exception() is None:
                self.job.discard(future.result())
