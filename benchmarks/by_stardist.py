"""StarDist (Schmidt et al. 2018) trained by its own code: a baseline for `nuclei.py`.

    pip install stardist tensorflow-cpu

Network, losses, patches, batches, optimizer and initial rate are StarDist's defaults, with 2 x 2 subsampling as in
its example for this data set, and three channels. The images keep their size, and each channel is normalised by its
percentiles 1 and 99.8. Patches are flipped, rotated by quarter turns, and change in brightness and noise, as in the
same example. The rate falls linearly to zero in the second half of the budget; StarDist's own rule, to halve it
after 40 epochs without progress, is for much longer training.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import keras
import numpy as np
import stardist
import tensorflow as tf
import torch
from cells import Fitted, load
from csbdeep.utils import normalize
from stardist.models import Config2D, StarDist2D
from torch import Tensor
from unet import to_panoptic

from refine.data.loader import PanopticDataset
from refine.structures import Categories, PanopticResult

ENDLESS = 10**6
"""Number of updates that no budget reaches."""


class Budget(keras.callbacks.Callback):
    """Stop of the training after a number of CPU minutes, and decay of the rate.

    Args:
        began: CPU time of the process when training began, in seconds.
        minutes: CPU minutes.
        rate: initial learning rate.
    """

    def __init__(self, began: float, minutes: float, rate: float) -> None:
        super().__init__()
        self.began, self.minutes, self.rate = began, minutes, rate
        self.updates, self.next_report = 0, 0.0

    @property
    def used(self) -> float:
        """CPU minutes used."""
        return (time.process_time() - self.began) / 60

    def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
        left = 1 - self.used / self.minutes
        self.model.optimizer.learning_rate = self.rate * min(1.0, max(0.0, 2 * left))

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        self.updates += 1
        if self.used >= self.next_report:
            loss = (logs or {})["loss"]
            print(f"  {self.used:.1f} of {self.minutes:g} min, update {self.updates}: loss {loss:.3f}", flush=True)
            self.next_report += self.minutes / 10
        if self.used >= self.minutes:
            self.model.stop_training = True


def fit(trained: PanopticDataset, held_out: PanopticDataset, minutes: float, seed: int, out: Path) -> Fitted:
    """Train for a number of CPU minutes and choose both thresholds; OUT/stardist contains the model.

    Args:
        trained, held_out: images for training, and to choose the thresholds.
        minutes: CPU minutes.
        seed: seed of the weights, patches and augmentation.
        out: output folder.
    """
    began = time.process_time()
    threads = torch.get_num_threads()
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    keras.utils.set_random_seed(seed)
    config = Config2D(n_channel_in=3, grid=(2, 2), train_tensorboard=False, train_reduce_lr=None)
    model = StarDist2D(config, name="stardist", basedir=str(out))
    model.prepare_for_training()
    budget = Budget(began, minutes, config.train_learning_rate)
    model.callbacks.append(budget)
    images, labels = prepare(trained)
    held = prepare(held_out)
    changed = partial(augment, rng=np.random.default_rng(seed))
    model.train(images, labels, held, augmenter=changed, seed=seed, epochs=1, steps_per_epoch=ENDLESS)
    used = budget.used
    chosen = model.optimize_thresholds(*held)
    versions = {"stardist": stardist.__version__, "tensorflow": tf.__version__}
    predict = partial(segment, model=model, categories=trained.categories)
    return Fitted(predict, model.keras_model.count_params(), budget.updates, used, chosen, versions)


def prepare(dataset: PanopticDataset) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the normalised images, each [H, W, 3] float32, and labels, each [H, W] int32 with holes filled."""
    images, labels = load(dataset)
    return [normalised(image) for image in images], [stardist.fill_label_holes(label) for label in labels]


def normalised(image: np.ndarray) -> np.ndarray:
    """Map the percentiles 1 and 99.8 of each channel of an image, [H, W, 3], to 0 and 1."""
    return normalize(image, 1, 99.8, axis=(0, 1))


def augment(image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Flip, rotate, brighten and add noise at random; image [S, S, 3] float32, label [S, S] int32."""
    turns = rng.integers(4)
    image, label = np.rot90(image, turns), np.rot90(label, turns)
    if rng.random() < 0.5:
        image, label = image[::-1], label[::-1]
    image = image * rng.uniform(0.6, 2) + rng.uniform(-0.2, 0.2)
    return image + 0.02 * rng.random() * rng.normal(size=image.shape), label


def segment(image: Tensor, model: StarDist2D, categories: Categories) -> PanopticResult:
    """Predict an image, Tensor[3, H, W] uint8 RGB."""
    numbers, _ = model.predict_instances(normalised(image.permute(1, 2, 0).numpy()))
    return to_panoptic(numbers.astype(np.int32), image.shape[1:], categories)
