"""Weights of a narrow network in detectron2's names, and pickles."""

import pickle
from pathlib import Path

import numpy as np

COUNTS = [(n, int(n <= 2)) for n in range(1, 5)]
CATEGORIES = [{"id": n, "name": f"class {n}", "isthing": thing} for n, thing in COUNTS]


def detectron2_state() -> dict[str, np.ndarray]:
    """Return a narrow ResNet-18 Panoptic-FPN with 2 thing and 2 stuff classes, in detectron2's names."""
    generator = np.random.default_rng(0)
    state: dict[str, np.ndarray] = {}

    def layer(name: str, *shape: int, norm: str | None = None) -> None:
        state[f"{name}.weight"] = generator.normal(0, 0.1, shape).astype(np.float32)
        if norm is None:
            state[f"{name}.bias"] = np.zeros(shape[0], np.float32)
            return
        for leaf in ("weight", "bias", *(("running_mean", "running_var") if norm == "bn" else ())):
            state[f"{name}.norm.{leaf}"] = np.full(shape[0], leaf in ("weight", "running_var"), np.float32)

    layer("backbone.bottom_up.stem.conv1", 8, 3, 7, 7, norm="bn")
    channels = 8
    for stage, width in enumerate((8, 16, 32, 64), 2):
        for block in range(2):
            prefix = f"backbone.bottom_up.res{stage}.{block}"
            layer(f"{prefix}.conv1", width, channels, 3, 3, norm="bn")
            layer(f"{prefix}.conv2", width, width, 3, 3, norm="bn")
            if channels != width:
                layer(f"{prefix}.shortcut", width, channels, 1, 1, norm="bn")
            channels = width
        layer(f"backbone.fpn_lateral{stage}", 8, width, 1, 1)
        layer(f"backbone.fpn_output{stage}", 8, 8, 3, 3)
        for n in range(max(1, stage - 2)):
            layer(f"sem_seg_head.p{stage}.{2 * n}", 8, 8, 3, 3, norm="gn")
    layer("sem_seg_head.predictor", 3, 8, 1, 1)
    layer("proposal_generator.rpn_head.conv", 8, 8, 3, 3)
    layer("proposal_generator.rpn_head.objectness_logits", 3, 8, 1, 1)
    layer("proposal_generator.rpn_head.anchor_deltas", 12, 8, 1, 1)
    layer("roi_heads.box_head.fc1", 16, 8 * 49)
    layer("roi_heads.box_head.fc2", 16, 16)
    layer("roi_heads.box_predictor.cls_score", 3, 16)
    layer("roi_heads.box_predictor.bbox_pred", 8, 16)
    for n in range(1, 5):
        layer(f"roi_heads.mask_head.mask_fcn{n}", 8, 8, 3, 3)
    layer("roi_heads.mask_head.deconv", 8, 8, 2, 2)
    layer("roi_heads.mask_head.predictor", 2, 8, 1, 1)
    state["pixel_mean"] = np.float32([1, 2, 3]).reshape(3, 1, 1)
    state["proposal_generator.anchor_generator.cell_anchors.0"] = np.zeros((3, 4), np.float32)
    return state


def write(path: Path, content) -> Path:
    """Write a pickle and return its path."""
    with path.open("wb") as file:
        pickle.dump(content, file)
    return path
