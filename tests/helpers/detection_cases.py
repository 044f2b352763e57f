"""Ground truth and detectron2's reference outputs for tests of RPN, box heads and mask heads."""

import pickle
from pathlib import Path

import pytest
import torch

from refine.structures import Targets

FIXTURES = ["panoptic_fpn_R_50", "panoptic_fpn_R_50_dconv_cascade_gn"]


def make_targets(boxes=(), labels=None, iscrowd=None, size=(128, 160)) -> Targets:
    """Return targets with boxes only, on an image without void."""
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    n = len(boxes)
    return Targets(
        boxes=boxes,
        labels=torch.tensor(labels if labels is not None else [0] * n, dtype=torch.int64),
        masks=torch.zeros(n, *size, dtype=torch.bool),
        iscrowd=torch.tensor(iscrowd if iscrowd is not None else [False] * n, dtype=torch.bool),
        sem_seg=torch.zeros(size, dtype=torch.int64),
        owner=torch.full(size, -1),
    )


def random_boxes(n: int, size=(128, 160), seed=0) -> torch.Tensor:
    """Return boxes inside the image with sides from 4 pixels to 60 % of the image, Tensor[n, 4]."""
    g = torch.Generator().manual_seed(seed)
    extent = torch.tensor([size[1], size[0]], dtype=torch.float32)
    wh = 4 + torch.rand(n, 2, generator=g) * (0.6 * extent - 4)
    xy = torch.rand(n, 2, generator=g) * (extent - wh)
    return torch.cat([xy, xy + wh], 1)


def detectron2_case(shared_dir: Path, name: str) -> tuple[dict[str, torch.Tensor], dict]:
    """Read weights by detectron2's names, and the outputs of its parts for one image."""
    folder = shared_dir / "fixtures" / "detectron2" / name
    if not folder.is_dir():
        pytest.skip(f"no reference outputs at {folder}")
    with open(folder / "model_final.pkl", "rb") as file:
        weights = pickle.load(file)["model"]
    reference = torch.load(folder / "reference.pt", weights_only=True)["same_size"]
    return {k: torch.as_tensor(v) for k, v in weights.items()}, reference


def load_renamed(module: torch.nn.Module, weights: dict[str, torch.Tensor], names: dict[str, str]) -> None:
    """Load weights and biases of layers; `names` maps refine's names to detectron2's."""
    kinds = ("weight", "bias")
    module.load_state_dict({f"{a}.{k}": weights[f"{b}.{k}"] for a, b in names.items() for k in kinds})
