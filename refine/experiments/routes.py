"""Use of the exchange by a trained network: PQ with each route emptied, shuffled or set to the truth; gradients.

    measure_routes(["runs/seed0", "runs/seed1"], dataset, Path("runs/routes"))

Boxes, scores and features stay as they are; a single input of the refining heads changes, in every iteration.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from refine.data.loader import PanopticDataset
from refine.data.resize import resize_for_test, resize_map
from refine.errors import RefineError
from refine.evaluation.interval import Counts, metric
from refine.evaluation.pq import PanopticQuality
from refine.experiments.checkpoints import add_results
from refine.experiments.gradient_flow import describe_flow, gradient_flow
from refine.experiments.tables import Row, Table
from refine.inference.measures import segments_info
from refine.inference.predictor import Predictor
from refine.modeling.ibpp import STRIDE
from refine.modeling.model import PanopticModel
from refine.modeling.norms import valid_pixels
from refine.modeling.output import NetworkOutput
from refine.modeling.semantic_head import pad_labels
from refine.networks.native import rescale
from refine.ops.roi import align, to_rois
from refine.structures import VOID, ImageBatch, Instances, Targets

Change = Literal["empty", "shuffled", "oracle"]

CHANGES: tuple[tuple[str, Change], ...] = (
    ("f_sem", "empty"),
    *(("p_sem", "empty"), ("p_sem", "shuffled"), ("p_sem", "oracle")),
    *(("canvas", "empty"), ("canvas", "shuffled"), ("canvas", "oracle")),
)


@dataclass
class Truth:
    """Inputs of the refining heads for perfect predictions.

    Attributes:
        p_sem: input of H̃_ins inside the boxes, Tensor[N, L, S, S].
        canvas: input of H̃_sem, Tensor[1, K, h, w].
    """

    p_sem: Tensor
    canvas: Tensor


def route_table(model: PanopticModel) -> Table:
    """Return the table of changes for a network's routes; the first row is the unchanged network."""
    routes = model.config.ibpp.routes if model.config.ibpp.iterations else []
    rows = [Row("as it is", train={})]
    rows += [Row(f"{route} {change}", train={}) for route, change in CHANGES if route in routes]
    return Table("What the exchange carries", ["PQ", "PQ_things", "PQ_stuff"], rows)


def measure_routes(
    checkpoints: Sequence[str],
    dataset: PanopticDataset,
    out: Path,
    max_images: int | None = None,
    device: str = "auto",
) -> tuple[Table, dict[str, list[dict[str, Any]]], list[str]]:
    """Evaluate networks of one config that were trained with several seeds, under each change of a route.

    Args:
        checkpoints: names or folders of models; see `load_model`.
        dataset: data set with the categories of the models.
        out: folder for the PQ counts of each image.
        max_images: maximum number of images; the first ones are used.
        device: "cpu", "cuda" or "auto".

    Returns:
        The table, its results for `write_table`, and Markdown lines on the gradients.

    Raises:
        RefineError: a checkpoint does not exist or has no iterations, or the checkpoints differ in their routes.
    """
    results: dict[str, list[dict[str, Any]]] = {}
    flows = []
    for seed, checkpoint in enumerate(checkpoints):
        predictor = Predictor(checkpoint, device=None if device == "auto" else device)
        if not predictor.model.config.ibpp.iterations:
            raise RefineError(f"{checkpoint}: has no iterations (T = 0), so there is no exchange; choose another")
        table = route_table(predictor.model)
        if results and set(results) != {row.name for row in table.rows}:
            raise RefineError(f"{checkpoint}: has other routes than {checkpoints[0]}; give runs of one config")
        count = min(max_images or len(dataset), len(dataset))
        measured = _measure(predictor, dataset, table, count)
        add_results(results, measured, out / "routes", seed, checkpoint, predictor.device)
        flows.append(_mean_flow(predictor, dataset, min(count, 32)))
    return table, results, describe_flow(flows)


def _measure(
    predictor: Predictor, dataset: PanopticDataset, table: Table, count: int
) -> dict[str, tuple[dict[str, float], Counts]]:
    """Return the metrics and PQ counts of each row, by name."""
    categories, model = predictor.categories, predictor.model
    quality = {row.name: PanopticQuality(categories) for row in table.rows}
    states: dict[str, list[np.ndarray]] = {row.name: [] for row in table.rows}
    for n in range(count):
        image, segments = dataset[n]
        segments = segments.named(len(categories))
        batch, targets = _at_network_size(predictor, image, segments, n)
        outputs = _altered_outputs(model, batch, targets, predictor.fusion.score_threshold)
        for name, output in outputs:
            size = (image.shape[1], image.shape[2])
            result = predictor.fuse(rescale(output, size, model.semantic_classes))
            before = quality[name].state()
            quality[name].update(
                segments.index.numpy() + 1,
                segments_info(segments, categories),
                result.segment_ids.cpu().numpy(),
                result.segments,
            )
            states[name].append(quality[name].state() - before)
    measured = {}
    for name, of_images in states.items():
        counts = Counts.of(categories, of_images)
        every = np.ones((1, count), int)
        values = {key: float(metric(counts, every, key)[0]) for key in table.metrics}
        measured[name] = ({key: value for key, value in values.items() if math.isfinite(value)}, counts)
    return measured


def _at_network_size(predictor: Predictor, image: Tensor, segments: Any, n: int) -> tuple[ImageBatch, Targets]:
    """Resize an image and its ground truth for the network; things that vanish are removed."""
    assert predictor.test_size is not None  # one of refine's own networks
    resized = resize_for_test(image, *predictor.test_size)
    size = (resized.shape[1], resized.shape[2])
    moved = segments.moved(lambda maps: resize_map(maps, size))
    num_things = predictor.categories.num_things
    targets = moved.without_small_things(num_things, 1).targets(num_things, n, str(n))
    return predictor.model.image_batch([resized]), targets.to(predictor.device)


def _altered_outputs(
    model: PanopticModel, batch: ImageBatch, targets: Targets, min_score: float
) -> list[tuple[str, NetworkOutput]]:
    """Return the network's output without changes, then under each change of a route."""
    with torch.inference_mode(), valid_pixels(batch):
        return list(_each_output(model, batch, targets, min_score))


def _each_output(
    model: PanopticModel, batch: ImageBatch, targets: Targets, min_score: float
) -> Iterator[tuple[str, NetworkOutput]]:
    seen = model.run_detector(batch)
    pyramid = model.pyramid(batch, seen)
    features = model.semantic_head.features(pyramid[:4])
    (plain,) = model.detect(batch, seen, pyramid, features, min_score)
    yield "as it is", plain
    truth = true_inputs(model, batch, targets, plain.instances, model.semantic_head(features))
    for route, change in CHANGES:
        if route in model.config.ibpp.routes:
            with altered(model, route, change, truth):
                (output,) = model.segment(batch, pyramid, features, [plain.instances])
            yield f"{route} {change}", output


def true_inputs(
    model: PanopticModel, batch: ImageBatch, targets: Targets, instances: Instances, logits: Tensor
) -> Truth:
    """Return the ground truth in the form of the predictions that the refining heads receive.

    Args:
        model: network whose inputs are replaced.
        batch: batch of one image.
        targets: ground truth at the size of the image.
        instances: N detections.
        logits: P_sem^(0), Tensor[1, L, h, w], whose mean and range the logits of the truth get.
    """
    height, width = batch.tensor.shape[-2:]
    labels = pad_labels([targets.sem_seg], (height, width))
    share = F.one_hot(labels.clamp(min=0), logits.shape[1]).movedim(-1, 1) * (labels != VOID)[:, None]
    share = F.avg_pool2d(share.float(), STRIDE)
    ibpp = model.ibpp
    if ibpp.balanced:
        read = ibpp.gain * share
    else:
        reach = logits.amax(1).mean() - logits.amin(1).mean()
        read = (share - 1 / share.shape[1]) * reach + logits.mean()
    p_sem = align(read, to_rois([instances.boxes]), ibpp.pool_size, ibpp.sampling, STRIDE)
    canvas = torch.zeros(1, model.num_things, height, width, device=logits.device)
    for mask, label in zip(targets.masks, targets.labels, strict=True):
        canvas[0, label, : mask.shape[0], : mask.shape[1]].clamp_(min=mask.float())
    return Truth(p_sem, ibpp.gain * F.avg_pool2d(canvas, STRIDE))


@contextmanager
def altered(model: PanopticModel, route: str, change: Change, truth: Truth) -> Iterator[None]:
    """Change a route in every iteration inside the context.

    "empty" omits f_sem, replaces p_sem by its mean over boxes and bins, and sets the canvas to zero. "shuffled"
    uses p_sem of another box, and shifts the canvas by half the image. "oracle" uses the truth.
    """

    def mask_input(_: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        projected, labels, p_sem, *before = arguments
        if change == "empty" and len(p_sem):
            p_sem = p_sem.mean((0, 2, 3), keepdim=True).expand_as(p_sem)
        elif change == "shuffled":
            p_sem = p_sem.roll(1, 0)
        return projected, labels, truth.p_sem if change == "oracle" else p_sem, *before

    def canvas_input(_: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        canvas, projected, present = arguments
        if change == "oracle":
            return truth.canvas, projected, None
        half = (canvas.shape[-2] // 2, canvas.shape[-1] // 2)
        return torch.zeros_like(canvas) if change == "empty" else canvas.roll(half, (-2, -1)), projected, present

    config, routes = model.ibpp.config, model.ibpp.config.routes
    handles = []
    if route == "f_sem":
        config.routes = [r for r in routes if r != "f_sem"]
    elif route == "p_sem":
        handles = [head.register_forward_pre_hook(mask_input) for head in model.ibpp.mask_heads]
    else:
        handles = [head.register_forward_pre_hook(canvas_input) for head in model.ibpp.semantic_heads]
    try:
        yield
    finally:
        config.routes = routes
        for handle in handles:
            handle.remove()


def _mean_flow(predictor: Predictor, dataset: PanopticDataset, count: int) -> dict[str, float]:
    """Return the mean `gradient_flow` over those of the first `count` images that contain things."""
    flows = []
    torch.manual_seed(0)  # for the sampled boxes
    for n in range(count):
        image, segments = dataset[n]
        batch, targets = _at_network_size(predictor, image, segments.named(len(predictor.categories)), n)
        if len(targets):
            flows.append(gradient_flow(predictor.model, batch, [targets]))
    return {name: float(np.mean([flow[name] for flow in flows])) for name in flows[0]} if flows else {}
