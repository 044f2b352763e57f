"""PQ by `ibpp.score_threshold`, the minimum score of detections on the canvas at test.

    python benchmarks/canvas.py configs/scenes.yaml runs/seed0 runs/seed1 runs/seed2 --thresholds 0.05 0.3 0.5

The checkpoints are runs of one config with T > 0 and several seeds. Each is evaluated on the config's data.val
(override it with `--data.val.json …`) with each threshold; the first threshold is the reference: mean difference ±
standard deviation over the checkpoints, and the 95% bootstrap interval over images and seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch

from refine.data.build import build_dataset
from refine.data.loader import PanopticDataset
from refine.evaluation.interval import Counts, metric, paired_interval
from refine.inference.evaluate import evaluate
from refine.inference.predictor import Predictor
from refine.training.config import load_run

METRICS = ("PQ", "PQ_things", "PQ_stuff")


def measure(checkpoints: Sequence[str], dataset: PanopticDataset, threshold: float) -> list[Counts]:
    """Return the PQ counts of each image, by checkpoint."""
    counts = []
    for checkpoint in checkpoints:
        predictor = Predictor(checkpoint, device="cpu")
        predictor.model.config.ibpp.score_threshold = threshold
        counts.append(evaluate(predictor, dataset).counts)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="config YAML, whose data.val is used")
    parser.add_argument("checkpoints", nargs="+", help="model folders")
    parser.add_argument(
        "--thresholds", type=float, nargs="+", default=[0.05, 0.0, 0.3, 0.5], help="(default: 0.05 0 0.3 0.5)"
    )
    options, overrides = parser.parse_known_args()
    torch.set_num_threads(1)
    data = load_run(options.config, overrides).data.val
    assert data is not None
    dataset = build_dataset(data, "data.val.")
    every = np.ones((1, len(dataset)), int)
    rows = {threshold: measure(options.checkpoints, dataset, threshold) for threshold in options.thresholds}
    first = rows[options.thresholds[0]]
    print("| threshold | " + " | ".join(f"{name} | Δ | 95%" for name in METRICS) + " |")
    print("|-" * (1 + 3 * len(METRICS)) + "|")
    for threshold, counts in rows.items():
        cells = [f"{threshold}"]
        for name in METRICS:
            values = np.array([metric(c, every, name)[0] for c in counts]) * 100
            cells.append(f"{values.mean():.2f}")
            if counts is first:
                cells += ["", ""]
                continue
            change = values - [metric(c, every, name)[0] * 100 for c in first]
            spread = change.std(ddof=1) if len(change) > 1 else 0.0
            interval = paired_interval(counts, first, name)
            cells.append(f"{change.mean():+.2f} ± {spread:.2f}")
            cells.append("" if interval is None else " … ".join(f"{100 * bound:+.2f}" for bound in interval))
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
