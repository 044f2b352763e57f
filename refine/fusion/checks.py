"""Conversion and validation of the arguments of `fuse`."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from refine.errors import RefineError
from refine.fusion.config import FusionConfig
from refine.fusion.rules import check_shape
from refine.structures import VOID, Categories, Instances
from refine.structures.arrays import ArrayLike, as_tensor


def convert(
    instances: Instances, sem_seg: ArrayLike | None, sem_confidence: ArrayLike | None
) -> tuple[Instances, Tensor, Tensor | None]:
    """Convert the arguments of `fuse` to tensors; a missing semantic map becomes `VOID` everywhere.

    Raises:
        TypeError: an argument has the wrong type.
        RefineError: a confidence is given without a map, or masks contain values other than 0 and 1.
    """
    if not isinstance(instances, Instances):
        raise TypeError(
            f"instances: expected refine.Instances, got {type(instances).__name__}; the functions of "
            "refine.adapters convert predictions of other libraries"
        )
    instances = replace(instances)  # validates again: fields may have been assigned after construction
    if sem_seg is None:
        if sem_confidence is not None:
            raise RefineError("sem_confidence: given without `sem_seg`; give both or neither")
        return instances, torch.full(instances.image_size, VOID, device=instances.boxes.device), None
    confidence = None if sem_confidence is None else as_tensor("sem_confidence", sem_confidence).detach()
    return instances, as_tensor("sem_seg", sem_seg), confidence


def check(
    instances: Instances,
    sem_seg: Tensor,
    sem_confidence: Tensor | None,
    categories: Categories,
    config: FusionConfig,
) -> None:
    """Raise the errors documented in `fuse` if its arguments are inconsistent."""
    if not isinstance(categories, Categories):
        raise TypeError(f"categories: expected refine.Categories, got {type(categories).__name__}")
    check_shape("sem_seg", sem_seg, instances.image_size)
    if not bool(((instances.scores >= 0) & (instances.scores <= 1)).all()):
        raise RefineError("instances.scores: expected probabilities 0-1, got other values; rescale the scores")
    if not bool(instances.boxes.isfinite().all()):
        raise RefineError("instances.boxes: expected finite numbers, got others; leave out these instances")
    if instances.roi_masks is not None:
        check_unit_range("instances.roi_masks", instances.roi_masks, "apply the sigmoid to logits once")
    if sem_confidence is not None:
        check_shape("sem_confidence", sem_confidence, instances.image_size)
        check_unit_range("sem_confidence", sem_confidence, "give the probability of the class in `sem_seg`")
    if config.unknown_erasing and sem_confidence is None:
        raise RefineError(
            "fusion.unknown_erasing (--unknown-erasing) needs the confidence of the semantic map; give "
            "`sem_confidence`, or leave it out"
        )
    _check_labels("sem_seg", sem_seg, VOID, len(categories), categories)
    _check_labels("instances.labels", instances.labels, 0, categories.num_things, categories)


def check_unit_range(name: str, values: Tensor, fix: str) -> None:
    """Raise RefineError with `fix` unless a tensor holds floats 0-1."""
    low, high = torch.stack(values.aminmax()).tolist() if values.numel() else (0.0, 0.0)
    if not values.is_floating_point() or not (low >= 0 and high <= 1.0001):  # half precision rounds
        raise RefineError(f"{name}: expected floats 0-1, got {values.dtype} {low:.4g}..{high:.4g}; {fix}")


def _check_labels(name: str, labels: Tensor, low: int, high: int, categories: Categories) -> None:
    """Raise RefineError if labels are not integers in low..high-1."""
    if not labels.numel():
        return
    if labels.is_floating_point() or labels.is_complex():
        raise RefineError(f"{name}: expected integers, got {labels.dtype}; give contiguous classes")
    smallest, largest = torch.stack(labels.aminmax()).tolist()
    if smallest < low or largest >= high:
        raise RefineError(
            f"{name}: expected labels {low}..{high - 1} of {categories!r}, got {smallest}..{largest}; "
            "map them to contiguous indices first"
        )
