"""Weights that a run starts from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from refine.checkpoint.find import find_model
from refine.checkpoint.folder import load_matching
from refine.errors import RefineError, counted
from refine.files import read_json
from refine.modeling.detector import Detector
from refine.modeling.model import PanopticModel
from refine.modeling.pretrained import load_pretrained
from refine.ops.shapes import shapes_only
from refine.structures import Categories
from refine.tensors import load_weights
from refine.training.config import RunConfig


def initialise(model: PanopticModel, config: RunConfig, categories: Categories) -> list[str]:
    """Load the weights of `init`, or else those of the backbone, and those of the detector.

    Args:
        model: network with random weights.
        config: config of the run.
        categories: categories of the training data.

    Returns:
        Names of the tensors outside the detector that `init` has no values for.

    Raises:
        RefineError: weights are missing, or `optim.train_only` would leave parts of the network random or with
            the classes of another data set.
    """
    fresh: list[str] = []
    if config.init is None:
        load_pretrained(model.backbone, config.model.backbone)
    else:
        folder = find_model(config.init)
        fresh = load_matching(model, folder)
        _check_classes(folder / "config.json", model, config, categories)
    if model.detector is not None:
        fresh = _load_detector(model.detector, fresh, config.init is not None)
    _check_frozen(fresh, config)
    return fresh


def _load_detector(detector: Detector, fresh: list[str], initialised: bool) -> list[str]:
    """Load a detector's weights unless `init` holds them; return the names in `fresh` outside the detector."""
    others = [name for name in fresh if not name.startswith("detector.")]
    if detector.config.weights is not None:
        load_weights(detector.network, detector.config.weights)
    elif not initialised or len(others) < len(fresh):
        raise RefineError(
            "model.detector.weights is missing, and `init` holds no detector, whose weights would stay random; "
            "give the file that examples/nanodet.py writes"
        )
    return others


def _check_classes(path: Path, model: PanopticModel, config: RunConfig, categories: Categories) -> None:
    """Raise RefineError if parts that are not trained predict the classes of `init`, and the data has others.

    Args:
        path: config.json of the model to start from.
        model: network.
        config: config of the run.
        categories: categories of the training data.
    """
    was = Categories.from_json(read_json(path).get("categories"), str(path))
    for old, new in zip(was, categories, strict=False):
        if (old.name, old.isthing) != (new.name, new.isthing):
            frozen = _frozen(_of_classes(model), config) if config.optim.train_only else []
            if not frozen:
                return
            raise RefineError(
                f"init: {config.init} predicts {old} where data.train has {new}, and optim.train_only "
                f"{config.optim.train_only} leaves {frozen[0]} as it is; train this part too, or give the "
                f"classes the names and the order of ids of that model"
            )


def _of_classes(model: PanopticModel) -> list[str]:
    """Return the names of the tensors with elements whose shape depends on the number of classes."""
    config, things, count = replace(model.config, detector=None), model.num_things, model.num_classes
    with shapes_only():
        more = PanopticModel(config, things + 1, count + 2).state_dict()
    own = model.state_dict()
    return [n for n, tensor in own.items() if n in more and more[n].shape != tensor.shape and tensor.numel()]


def _frozen(names: Iterable[str], config: RunConfig) -> list[str]:
    """Return those of the tensors that `optim.train_only` leaves as they are."""
    trained = tuple(config.optim.train_only)
    return [name for name in names if not name.startswith(trained)] if trained else []


def _check_frozen(fresh: list[str], config: RunConfig) -> None:
    """Raise RefineError if tensors are neither in `init` nor trained, and would stay random."""
    left = _frozen(fresh, config)
    if left:
        raise RefineError(
            f"init: {config.init} has no values for {counted(len(left), 'tensor')} of the model, first {left[0]}, "
            f"and optim.train_only {config.optim.train_only} would leave them random; use that checkpoint's `model`"
        )
