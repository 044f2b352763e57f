"""From a run's config to its data."""

from __future__ import annotations

import signal
from collections.abc import Iterator

from refine.data.loader import PanopticDataset, build_loader
from refine.errors import RefineError
from refine.runtime import Processes
from refine.training.config import RunConfig
from refine.training.update import Batch


def training_parts(
    dataset: PanopticDataset, config: RunConfig, group: Processes, start: int
) -> Iterator[list[Batch]]:
    """This process's share of every batch from update `start` on, in `optim.accumulate` parts, endlessly.

    The images of a batch depend on the seed and the update alone, not on processes or parts.

    Raises:
        RefineError: the batch cannot be divided evenly.
    """
    size, parts = config.optim.batch_size, config.optim.accumulate
    if size % (group.count * parts):
        raise RefineError(
            f"optim.batch_size is {size}, which {group.count} process(es) × optim.accumulate {parts} do not "
            f"divide evenly; give a multiple of {group.count * parts}"
        )
    loader = build_loader(
        dataset,
        config.augment,
        size,
        seed=config.seed,
        workers=config.workers,
        rank=group.rank,
        world_size=group.count,
        start=start,
        pin_memory=group.device.type == "cuda",
    )
    loader.worker_init_fn = _leave_signals
    each = size // (group.count * parts)
    for images, targets in loader:
        yield [(images[n : n + each], targets[n : n + each]) for n in range(0, len(images), each)]


def _leave_signals(worker: int) -> None:
    """A job's end or Ctrl-C is for the training process: it needs its workers to finish the update."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
