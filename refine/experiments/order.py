"""Value of the order of overlapping instances: PQ of each fusion rule, and of the order that the truth gives.

    measure_order(["runs/seed0"], dataset, Path("runs/order"))

The network runs once per image. The rules with the true order show the most that any order of pairs can gain.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refine.data.loader import PanopticDataset
from refine.errors import RefineError, counted
from refine.experiments.calibration import Calibration
from refine.experiments.checkpoints import add_results
from refine.experiments.tables import Row, Table
from refine.fusion import FusionConfig, fuse
from refine.fusion.config import OWN_MERGE, AnyMethod
from refine.inference.evaluate import Evaluation
from refine.inference.measures import Example, Fused, OrderAccuracy, Quality
from refine.inference.predictor import Predictor
from refine.modeling.occlusion import detection_pairs
from refine.structures import Categories, PanopticResult, Prediction, Targets

RULES: dict[str, AnyMethod] = {
    "heuristic": "heuristic",
    "SHR": "shr",
    "SRM": "srm",
    "strong baseline": "strong",
    "SOE": "soe",
    "own merge": OWN_MERGE,
}

TRUE, TRUE_AND_FALSE = "true order", "true order, false detections behind"
"""Rows of the oracle: pairs of two true detections alone, or also pairs of a true and a false one."""


def order_table(predictor: Predictor) -> Table:
    """Return the table of the rules that a model can apply; the first row is the heuristic."""
    names = [name for name, method in RULES.items() if method in predictor.methods]
    metrics = ["PQ_things", "PQ", "pairs_right", "false_pairs_right"]
    rows = [Row(name, train={}) for name in (*names, TRUE, TRUE_AND_FALSE)]
    return Table("What the order of instances is worth", metrics, rows)


def measure_order(
    checkpoints: Sequence[str],
    dataset: PanopticDataset,
    out: Path,
    max_images: int | None = None,
    device: str = "auto",
    occlusion: Sequence[str] = (),
) -> tuple[Table, dict[str, list[dict[str, Any]]], list[str]]:
    """Evaluate models of one config that were trained with several seeds, under each rule and the true order.

    Args:
        checkpoints: names or folders of models; see `load_model`.
        dataset: data set with the categories of the models.
        out: folder for the PQ counts of each image.
        max_images: maximum number of images; the first ones are used.
        device: "cpu", "cuda" or "auto".
        occlusion: an occlusion head for each model, or empty for their own; see `load_occlusion`.

    Returns:
        The table, its results for `write_table`, and Markdown lines with the number of pairs and the calibration of
        the occlusion head, if there is one.

    Raises:
        RefineError: a checkpoint does not exist, its categories are not those of the data set, the checkpoints
            differ in their heads, or there are more or fewer occlusion heads than checkpoints.
    """
    if occlusion and len(occlusion) != len(checkpoints):
        raise RefineError(
            f"--occlusion: expected {counted(len(checkpoints), 'head')}, one per checkpoint, got {len(occlusion)}"
        )
    results: dict[str, list[dict[str, Any]]] = {}
    notes: list[str] = []
    calibration = Calibration()
    for seed, checkpoint in enumerate(checkpoints):
        head = occlusion[seed] if occlusion else None
        predictor = Predictor(checkpoint, device=None if device == "auto" else device, occlusion=head)
        predictor.categories.check_equal(dataset.categories, "the model", "the data set")
        table = order_table(predictor)
        if results and set(results) != {row.name for row in table.rows}:
            raise RefineError(f"{checkpoint}: has other heads than {checkpoints[0]}; give runs of one config")
        count = min(max_images or len(dataset), len(dataset))
        evaluations = _evaluate(predictor, dataset, table, count, calibration)
        order = evaluations[TRUE][OrderAccuracy]
        notes.append(
            f"- {checkpoint}: {order.totals[1]} overlapping pairs of two true detections, "
            f"{order.false_totals[1]} of a true and a false one"
        )
        measured = {name: (e.metrics, e.counts) for name, e in evaluations.items()}
        add_results(results, measured, out / "order", seed, checkpoint, predictor.device)
    return table, results, notes + (calibration.describe() if calibration.true else [])


@torch.inference_mode()
def _evaluate(
    predictor: Predictor, dataset: PanopticDataset, table: Table, count: int, calibration: Calibration
) -> dict[str, Evaluation]:
    """Evaluate each row on the first `count` images, and add their pairs to the calibration."""
    measures = {row.name: (Quality(), OrderAccuracy()) for row in table.rows}
    for measure in (m for both in measures.values() for m in both):
        measure.reset(dataset.categories)
    config, head = predictor.fusion, predictor.fusion_heads().get("occlusion")
    for n in range(count):
        image, truth = dataset[n]
        prediction = predictor.predict_raw([image], config.score_threshold)[0]
        named = truth.named(len(dataset.categories))
        example = Example(n, image, named, *dataset.name(n), dataset.categories, prediction)
        if head is not None:
            calibration.add(prediction, example.targets, config, head)
        for name, both in measures.items():
            if name in RULES:
                result = predictor.fuse(prediction, RULES[name], config)
            else:
                result = fuse_in_true_order(
                    prediction, example.targets, dataset.categories, config, name == TRUE_AND_FALSE
                )
            for measure in both:
                measure.update(example, Fused(result, config))
    return {name: Evaluation(both) for name, both in measures.items()}


def fuse_in_true_order(
    prediction: Prediction, targets: Targets, categories: Categories, config: FusionConfig, false_pairs: bool
) -> PanopticResult:
    """Fuse a prediction with the pairwise order of the ground truth; scores order the other pairs.

    Args:
        prediction: network's prediction for the image.
        targets: ground truth at the size of the image.
        categories: categories of the model.
        config: fusion thresholds.
        false_pairs: whether true detections lie in front of overlapping false ones, too.
    """
    instances = prediction.instances
    masks = instances.mask_runs().dense().flatten(1)
    pairs, false = detection_pairs(masks, instances.labels, targets.to(masks.device), config.pair_overlap)
    occlusion = _order_matrix(torch.cat([pairs, false]) if false_pairs else pairs, len(instances), masks.device)
    return fuse(
        instances,
        prediction.sem_seg,
        categories=categories,
        method="strong",
        sem_confidence=prediction.sem_confidence,
        sem_probabilities=prediction.sem_probabilities,
        occlusion=occlusion,
        config=config,
    )


def _order_matrix(pairs: Tensor, count: int, device: torch.device) -> Tensor:
    """Return O, Tensor[N, N]: 1 for (front, back), 0 for (back, front), and 1/2 for undecided pairs."""
    occlusion = torch.full((count, count), 0.5, device=device)
    front, back = pairs.unbind(1)
    occlusion[front, back], occlusion[back, front] = 1.0, 0.0
    return occlusion
