"""Prediction, fusion and evaluation on a cluster, by Ray Data: actors that load the model once.

Blocks of items are mapped by a pool of actors that grows and shrinks with the work. Ray repeats the block of an
actor that was lost. An item on which the process dies again and again is given up, and the others go on.
"""

from __future__ import annotations

import math
import os
import pickle
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from refine.data.build import build_dataset
from refine.data.config import DatasetConfig
from refine.errors import RefineError, missing_extra
from refine.formats.image_list import ImageFile
from refine.formats.result_files import ResultFiles, Written
from refine.inference.evaluate import Evaluation, evaluate, merged
from refine.inference.fuse_files import FileFusion, FusionInputs, FusionItem
from refine.inference.image_job import Finished, ImageJob
from refine.inference.job_settings import JobSettings
from refine.inference.measures import Measure
from refine.inference.pipeline import Workers, run_pipeline
from refine.inference.starts import Starts
from refine.runtime import Processes, prepare_cpu
from refine.savers import find_savers
from refine.storage import Location

DEATHS = 3
"""Number of times that a process may die on an item before the item is given up."""
BLOCK = 16
"""Number of images in the unit of work that is repeated if an actor is lost."""
MOST_BLOCKS = 10_000
"""Number of blocks above which they hold more than `BLOCK` images: Ray keeps track of each."""


@dataclass(frozen=True)
class Cluster:
    """Cluster to run on, and what each actor gets.

    Attributes:
        address: address of a running cluster ("auto", "ray://HOST:10001"); "" stands for RAY_ADDRESS, or else for
            one that is started on this machine.
        device: "cpu", "cuda"; None stands for a GPU per actor if the cluster has any.
        threads: CPU threads per actor.
    """

    address: str = ""
    device: str | None = None
    threads: int = 1

    def connect(self) -> Cluster:
        """Connect, and return this cluster with its device.

        Raises:
            RefineError: Ray is not installed, there is no cluster at the address, or none can be started here.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported anywhere
        try:
            import ray.data
        except ImportError as error:
            raise missing_extra("--ray needs Ray Data", "ray") from error
        if not ray.is_initialized():
            handler = signal.getsignal(signal.SIGTERM)
            try:
                ray.init(address=self.address or None, log_to_driver=False, include_dashboard=False)
            except Exception as error:  # Ray raises any kind, also Exception itself
                reason = str(error).split("\n")[0]
                if address := self.address or os.environ.get("RAY_ADDRESS"):
                    message = f"--ray {address}: no cluster there ({reason}); check the address"
                else:
                    message = f"--ray: Ray does not start on this machine ({reason}); try again, or leave out --ray"
                raise RefineError(message) from error
            finally:
                if threading.current_thread() is threading.main_thread():  # Ray replaces the handler there
                    signal.signal(signal.SIGTERM, handler)
        ray.data.DataContext.get_current().enable_progress_bars = False
        gpus = ray.cluster_resources().get("GPU", 0) > 0
        return replace(self, device=self.device or ("cuda" if gpus else "cpu"))

    def map(
        self, items: Iterable[Any], worker: type[Worker], arguments: Mapping[str, Any], block: int = BLOCK
    ) -> Iterator[Any]:
        """Yield the outcomes of all items in the order of completion; see `Worker`.

        Args:
            items: picklable values, passed to `Worker.work`.
            worker: class of the workers.
            arguments: arguments of its constructor.
            block: number of items per block.
        """
        import ray.data

        rows = [{"item": pickle.dumps(item)} for item in items]
        if not rows:
            return
        blocks = min(math.ceil(len(rows) / block), MOST_BLOCKS)
        starts = ray.remote(num_cpus=0)(Starts).remote()
        outcomes = ray.data.from_items(rows, override_num_blocks=blocks).map_batches(
            _Actor,
            batch_size=None,
            batch_format="numpy",
            fn_constructor_kwargs={
                "worker": worker,
                "arguments": dict(arguments),
                "starts": starts,
                "folder": os.getcwd(),
            },
            compute=ray.data.ActorPoolStrategy(min_size=1),
            num_cpus=self.threads,
            num_gpus=1 if self.device == "cuda" else None,
        )
        for row in outcomes.iter_rows():
            yield pickle.loads(row["outcome"])


class Worker(Protocol):
    """Work of one actor. The constructor loads the model."""

    def work(self, items: Sequence[Any]) -> Iterator[Any]:
        """Yield one outcome per item, in order."""
        ...

    def give_up(self, item: Any, problem: str) -> Any:
        """Return the outcome of an item on which the process died `DEATHS` times."""
        ...


class _Actor:
    """Callable that Ray Data creates once per actor and calls for every block.

    A block that was started before is worked on item by item, so that an item on which the process dies is known.
    """

    def __init__(self, worker: type[Worker], arguments: Mapping[str, Any], starts: Any, folder: str) -> None:
        if os.path.isdir(folder):
            os.chdir(folder)  # relative paths mean the same as in the command
        self._worker, self._starts = worker(**arguments), starts

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[bytes]]:
        keys = [bytes(item) for item in batch["item"]]
        block = b"block " + keys[0]
        if self._start(block) == 0:
            outcomes = list(self._worker.work([pickle.loads(key) for key in keys]))
        else:
            outcomes = [self._alone(key) for key in keys]
        self._starts.end.remote(block, *keys)
        return {"outcome": [pickle.dumps(outcome) for outcome in outcomes]}

    def _alone(self, key: bytes) -> Any:
        item = pickle.loads(key)
        if self._start(key) >= DEATHS - 1:  # it also died in the first run of the block
            problem = f"the process died {DEATHS} times on it, perhaps for lack of memory; cut it into tiles"
            return self._worker.give_up(item, problem)
        (outcome,) = self._worker.work([item])
        self._starts.end.remote(key)
        return outcome

    def _start(self, key: bytes) -> int:
        import ray

        earlier: int = ray.get(self._starts.start.remote(key))
        return earlier


class PredictWorker:
    """Worker that predicts image files and writes the files of the results.

    Args:
        settings: what to do, with the device of the actors.
        out: folder of the results.
        save: names of the formats.
        threads: CPU threads.
    """

    def __init__(self, settings: JobSettings, out: Location, save: str, threads: int) -> None:
        prepare_cpu(threads)
        predictor = settings.predictor()
        self.job = ImageJob(settings, predictor, ResultFiles(out, find_savers(save)))
        self.workers = Workers.on(predictor.device.type)

    def work(self, items: Sequence[ImageFile]) -> Iterator[tuple[ImageFile, Finished | Exception]]:
        return run_pipeline(items, self.job, self.workers)

    def give_up(self, item: ImageFile, problem: str) -> tuple[ImageFile, Exception]:
        return item, RefineError(f"{item.path}: {problem}")


class FuseWorker:
    """Worker that fuses files and writes the results."""

    def __init__(self, inputs: FusionInputs, out: Location) -> None:
        self.fusion, self.files = FileFusion(inputs), ResultFiles(out)

    def work(self, items: Sequence[FusionItem]) -> Iterator[Written | Exception]:
        for item in items:
            try:
                outcome: Written | Exception = self.files.write(item.image_id, item.name, self.fusion(item))
            except RefineError as error:
                outcome = error
            yield outcome

    def give_up(self, item: FusionItem, problem: str) -> Exception:
        return RefineError(f"{item.name}: {problem}")


class EvaluateWorker:
    """Worker that evaluates parts of a data set; see `evaluate_on`."""

    def __init__(
        self, settings: JobSettings, data: DatasetConfig, measures: Sequence[Measure], threads: int
    ) -> None:
        prepare_cpu(threads)
        self.predictor, self.dataset = settings.predictor(), build_dataset(data)
        self.measures = measures

    def work(self, items: Sequence[tuple[int, int, int]]) -> Iterator[tuple[int, Evaluation | Exception]]:
        for number, count, most in items:
            group = _Part(number, count, torch.device("cpu"))
            try:
                part: Evaluation | Exception = evaluate(
                    self.predictor, self.dataset, measures=self.measures, max_images=most, group=group
                )
            except RefineError as error:
                part = error
            yield number, part

    def give_up(self, item: tuple[int, int, int], problem: str) -> tuple[int, Exception]:
        number, count, most = item
        first, last = number * most // count, (number + 1) * most // count - 1
        return number, RefineError(f"images {first} to {last} of the data set: {problem}")


class _Part(Processes):
    """Group of processes in which each keeps its own part of an evaluation."""

    def gather(self, value: Any) -> list[Any]:
        return [value]


def evaluate_on(
    cluster: Cluster, settings: JobSettings, data: DatasetConfig, measures: Sequence[Measure], images: int
) -> Evaluation:
    """Evaluate a model on a data set on all machines, with the same result as on one.

    Args:
        cluster: connected cluster.
        settings: model, rule and thresholds.
        data: data set; all machines need its files.
        measures: measures to compute.
        images: number of images to evaluate, the first of the data set.

    Raises:
        RefineError: a file cannot be read, or the process died again and again on some images.
    """
    count = math.ceil(images / BLOCK)
    items = [(number, count, images) for number in range(count)]
    arguments = {
        "settings": replace(settings, device=cluster.device),
        "data": data,
        "measures": list(measures),
        "threads": cluster.threads,
    }
    parts: dict[int, Evaluation] = {}
    for number, part in cluster.map(items, EvaluateWorker, arguments, block=1):
        if isinstance(part, Exception):
            raise part
        parts[number] = part
    return merged([parts[number] for number in range(count)])
