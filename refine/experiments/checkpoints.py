"""Results of trained checkpoints in the form of a table's rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from refine.evaluation.interval import Counts, write_counts
from refine.experiments.machine import describe_machine


def add_results(
    results: dict[str, list[dict[str, Any]]],
    measured: Mapping[str, tuple[dict[str, float], Counts]],
    folder: Path,
    seed: int,
    checkpoint: str,
    device: torch.device,
) -> None:
    """Write the counts of each row of one checkpoint, and append its result for `write_table`.

    Args:
        results: results by row, to which one per row is added.
        measured: metrics and PQ counts of each row.
        folder: folder for the counts.
        seed: index of the checkpoint.
        checkpoint: name or folder of the model.
        device: device that the model ran on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, (metrics, counts) in measured.items():
        path = folder / f"{seed}_{name.replace(' ', '_')}.npz"
        write_counts(path, counts)
        results.setdefault(name, []).append(
            {
                "seed": seed,
                "checkpoint": str(checkpoint),
                "metrics": metrics,
                "counts": path,
                "images": len(counts.pq),
                "training_minutes": 0.0,
                "machine": describe_machine(device),
            }
        )
