"""Occlusion head attached to a network that has none."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from refine.checkpoint.occlusion import SavedOcclusion, load_occlusion
from refine.formats.adapters import add_roi_masks
from refine.modeling.occlusion import OcclusionHead
from refine.structures import Categories, Instances
from refine.tensors import digest


@dataclass(frozen=True)
class AttachedOcclusion:
    """Function that computes O of the instances of any network, for `refine.fuse(occlusion=…)`.

    Attributes:
        head: head on mask and label, on the device of the instances.
    """

    head: OcclusionHead

    def __call__(self, instances: Instances, pairs: Tensor) -> Tensor:
        """Return O, Tensor[N, N] float32, of the given pairs, Tensor[P, 2]; see `OcclusionHead.predict`."""
        involved, index = torch.unique(pairs, return_inverse=True)
        occlusion = torch.full((len(instances), len(instances)), 0.5, device=instances.boxes.device)
        occlusion[involved[:, None], involved] = self.head.predict(with_roi_masks(instances[involved]), index)
        return occlusion

    def digest(self) -> str:
        """Return a digest of the weights and their names."""
        return digest(self.head.state_dict())


def with_roi_masks(instances: Instances) -> Instances:
    """Return instances with `roi_masks`, computed from the masks in the image if the network gives none."""
    return instances if instances.roi_masks is not None else add_roi_masks(instances)


def attach_occlusion(
    source: str | Path | SavedOcclusion, categories: Categories, where: str, device: torch.device | str = "cpu"
) -> AttachedOcclusion:
    """Prepare an occlusion head for the instances of a network.

    Args:
        source: head, or its folder; see `load_occlusion`.
        categories: categories of the network's predictions.
        where: name of the network, for messages.
        device: device of the network.

    Raises:
        RefineError: see `load_occlusion`; or the classes are others than those of the head.
    """
    saved = source if isinstance(source, SavedOcclusion) else load_occlusion(source)
    name = "occlusion" if isinstance(source, SavedOcclusion) else str(source)
    saved.check_things(categories, name, where)
    return AttachedOcclusion(copy.deepcopy(saved.head).to(device).eval())  # the caller's stays as it is
