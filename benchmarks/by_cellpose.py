"""Cellpose 3 (Stringer et al. 2021) trained by its own code: a baseline for `nuclei.py`.

    pip install 'cellpose<4'

Network, optimizer, rate, batches, augmentation (rotation, flip, scale) and normalisation are the defaults of its
command line. Images are converted to grey and rescaled so that nuclei have a diameter of 17 pixels, as for its own
nuclei model: in training by their true median diameter, in prediction by the estimate of its size model. Its
schedule needs the number of updates in advance; this follows from the time of a short trial, which counts as
training.
"""

from __future__ import annotations

import copy
import time
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cellpose import dynamics, version
from cellpose.models import CellposeModel, SizeModel
from cellpose.train import train_seg, train_size
from cells import Fitted, load
from torch import Tensor
from unet import to_panoptic

from refine.data.loader import PanopticDataset
from refine.evaluation.pq import PanopticQuality
from refine.inference.drawings import to_result
from refine.structures import Categories, PanopticResult

DIAMETER = 17.0
"""Diameter of nuclei in the network's input, in pixels."""

GREY = [0, 0]
"""Cellpose's channels of a grey image."""

BATCH = 8
"""Images per batch, and per epoch, so that the schedule, which counts epochs, can end with the budget."""

SIZED = 128
"""Images that train the size model."""

GRID = [
    {"cellprob_threshold": cell, "flow_threshold": flow}
    for cell, flow in product((-1.0, 0.0, 1.0), (0.3, 0.4, 0.6, 0.8))
]
"""Settings that `tune` tries; Cellpose's defaults are 0 and 0.4."""


def fit(trained: PanopticDataset, held_out: PanopticDataset, minutes: float, seed: int, out: Path) -> Fitted:
    """Train for a number of CPU minutes and choose both thresholds; OUT/models contains the model.

    Args:
        trained, held_out: images for training, and to choose the thresholds.
        minutes: CPU minutes.
        seed: seed of the weights; Cellpose seeds the augmentation of an epoch with its number.
        out: output folder.
    """
    began = time.process_time()
    torch.manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    model = CellposeModel(gpu=False, pretrained_model=None, diam_mean=DIAMETER)
    count = sum(p.numel() for p in model.net.parameters())  # prediction replaces them by MKL-DNN's
    images, labels = load(trained)
    flows = dynamics.labels_to_flows([np.maximum(label, 0) for label in labels], device=model.device)
    trial = copy.deepcopy(model), images[:BATCH], flows[:BATCH]
    train(*trial, out / "trial", epochs=1)  # the first one is slower
    per_epoch, per_sized = train(*trial, out / "trial", epochs=3) / 3, train_sizes(*trial, BATCH)[1] / BATCH
    left = 60 * minutes - (time.process_time() - began) - SIZED * per_sized
    epochs = max(1, round(left / per_epoch))
    train(model, images, flows, out / "cellpose", epochs)
    sizes, _ = train_sizes(model, images, flows, SIZED)
    used = (time.process_time() - began) / 60
    chosen = tune(model, sizes, held_out)
    predict = partial(by_cellpose, model=model, sizes=sizes, chosen=chosen, categories=trained.categories)
    return Fitted(predict, count, epochs, used, chosen, {"cellpose": version})


def train(
    model: CellposeModel, images: list[np.ndarray], flows: list[np.ndarray], file: Path, epochs: int
) -> float:
    """Train the network and save it as FILE; return the CPU seconds.

    Args:
        model: model whose network is trained.
        images: images, each [H, W, 3] uint8.
        flows: targets of each image from `labels_to_flows`, [4, H, W].
        file: file, in the folder "models" beside it as Cellpose wants.
        epochs: number of epochs of `BATCH` images.
    """
    began = time.process_time()
    model.pretrained_model, *_ = train_seg(
        model.net,
        images,
        flows,
        channels=GREY,
        batch_size=BATCH,
        learning_rate=0.2,
        weight_decay=1e-5,
        SGD=True,
        n_epochs=epochs,
        nimg_per_epoch=BATCH,
        min_train_masks=1,
        save_path=file.parent,
        model_name=file.name,
    )
    return time.process_time() - began


def train_sizes(
    model: CellposeModel, images: list[np.ndarray], flows: list[np.ndarray], count: int
) -> tuple[SizeModel, float]:
    """Fit the size model on `count` random images; return it and the CPU seconds. Other arguments as in `train`."""
    began = time.process_time()
    sizes = SizeModel(model)
    sizes.params = train_size(
        model.net,
        model.pretrained_model,
        images,
        flows,
        channels=GREY,
        min_train_masks=1,
        nimg_per_epoch=count,
        batch_size=BATCH,
        n_epochs=1,
    )
    return sizes, time.process_time() - began


def tune(model: CellposeModel, sizes: SizeModel, dataset: PanopticDataset) -> dict[str, float]:
    """Return the setting of `GRID` with the highest PQ on held-out images."""
    qualities = [PanopticQuality(dataset.categories) for _ in GRID]
    for n in range(len(dataset)):
        image, segments = dataset[n]
        truth, pixels = to_result(segments, dataset.categories), image.permute(1, 2, 0).numpy()
        diameter = sizes.eval(pixels, channels=GREY)[0]
        _, (_, steps, cells), _ = model.eval(pixels, channels=GREY, diameter=diameter, compute_masks=False)
        for setting, quality in zip(GRID, qualities, strict=True):
            niter = 200 * diameter / DIAMETER  # as `eval` chooses it
            numbers = dynamics.resize_and_compute_masks(steps, cells, niter=niter, device=model.device, **setting)
            result = to_panoptic(numbers.astype(np.int32), image.shape[1:], dataset.categories)
            quality.update(
                truth.segment_ids.numpy(), truth.segments, result.segment_ids.numpy(), result.segments, image_id=n
            )
    return GRID[int(np.argmax([quality.compute().group()["pq"] for quality in qualities]))]


def by_cellpose(
    image: Tensor, model: CellposeModel, sizes: SizeModel, chosen: dict[str, Any], categories: Categories
) -> PanopticResult:
    """Predict an image, Tensor[3, H, W] uint8 RGB."""
    pixels = image.permute(1, 2, 0).numpy()
    diameter = sizes.eval(pixels, channels=GREY)[0]
    numbers = model.eval(pixels, channels=GREY, diameter=diameter, **chosen)[0]
    return to_panoptic(numbers.astype(np.int32), image.shape[1:], categories)
