"""Training batches of a run."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing

from refine.data.loader import PanopticDataset, training_batches
from refine.errors import RefineError
from refine.runtime import Processes
from refine.training.config import RunConfig
from refine.training.update import Batch


def training_parts(
    dataset: PanopticDataset, config: RunConfig, group: Processes, start: int
) -> Generator[list[Batch], None, None]:
    """Yield this process's share of every batch from update `start` on, in `optim.accumulate` parts, endlessly.

    The images of a batch depend only on the seed and the update, not on the number of processes or parts.

    Args:
        dataset: training data set.
        config: config of the run.
        group: processes that share the batch.
        start: number of updates already completed.

    Raises:
        RefineError: the batch cannot be divided evenly.
    """
    size, parts = config.optim.batch_size, config.optim.accumulate
    if size % (group.count * parts):
        raise RefineError(
            f"optim.batch_size is {size}, which {group.count} process(es) × optim.accumulate {parts} do not "
            f"divide evenly; give a multiple of {group.count * parts}"
        )
    batches = training_batches(
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
    each = size // (group.count * parts)
    with closing(batches):
        for images, targets in batches:
            yield [(images[n : n + each], targets[n : n + each]) for n in range(0, len(images), each)]
