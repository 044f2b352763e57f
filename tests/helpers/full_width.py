"""Random weights with the names and shapes of detectron2's Panoptic-FPN."""

import numpy as np


def panoptic_fpn_state(width: int = 64, depth: int = 50, cascade: bool = False) -> dict[str, np.ndarray]:
    """State dict of `panoptic_fpn_R_50_3x` and its like for COCO's 80 things and 53 stuff classes.

    Args:
        width: channels of the stem; everything is in proportion to it. 64 is the published networks'.
        depth: 50 or 101.
        cascade: as `panoptic_fpn_R_101_dconv_cascade_gn_3x`: three box heads, GroupNorm, deformable stages.
    """
    generator = np.random.default_rng(0)
    state: dict[str, np.ndarray] = {}

    def layer(name: str, *shape: int, norm: str | None = None) -> None:
        state[f"{name}.weight"] = 0.02 * generator.standard_normal(shape, dtype=np.float32)
        if norm is None:
            state[f"{name}.bias"] = np.zeros(shape[0], np.float32)
            return
        for leaf in ("weight", "bias", *(("running_mean", "running_var") if norm == "bn" else ())):
            state[f"{name}.norm.{leaf}"] = np.full(shape[0], leaf in ("weight", "running_var"), np.float32)

    norm, group = ("gn", "gn") if cascade else ("bn", None)
    pyramid, dense, hidden = 4 * width, 2 * width, 16 * width
    layer("backbone.bottom_up.stem.conv1", width, 3, 7, 7, norm=norm)
    channels = width
    for stage, blocks in zip(range(2, 6), (3, 4, 23 if depth == 101 else 6, 3), strict=True):
        middle, out = width * 2 ** (stage - 2), width * 2**stage
        for block in range(blocks):
            prefix = f"backbone.bottom_up.res{stage}.{block}"
            layer(f"{prefix}.conv1", middle, channels, 1, 1, norm=norm)
            if cascade and stage > 2:
                layer(f"{prefix}.conv2_offset", 18, middle, 3, 3)
            layer(f"{prefix}.conv2", middle, middle, 3, 3, norm=norm)
            layer(f"{prefix}.conv3", out, middle, 1, 1, norm=norm)
            if block == 0:
                layer(f"{prefix}.shortcut", out, channels, 1, 1, norm=norm)
            channels = out
        layer(f"backbone.fpn_lateral{stage}", pyramid, out, 1, 1, norm=group)
        layer(f"backbone.fpn_output{stage}", pyramid, pyramid, 3, 3, norm=group)
        for n in range(max(1, stage - 2)):
            layer(f"sem_seg_head.p{stage}.{2 * n}", dense, dense if n else pyramid, 3, 3, norm="gn")
    layer("sem_seg_head.predictor", 54, dense, 1, 1)
    layer("proposal_generator.rpn_head.conv", pyramid, pyramid, 3, 3)
    layer("proposal_generator.rpn_head.objectness_logits", 3, pyramid, 1, 1)
    layer("proposal_generator.rpn_head.anchor_deltas", 12, pyramid, 1, 1)
    for part in ("0.", "1.", "2.") if cascade else ("",):
        layer(f"roi_heads.box_head.{part}fc1", hidden, 49 * pyramid)
        layer(f"roi_heads.box_head.{part}fc2", hidden, hidden)
        layer(f"roi_heads.box_predictor.{part}cls_score", 81, hidden)
        layer(f"roi_heads.box_predictor.{part}bbox_pred", 4 if cascade else 320, hidden)
    for n in range(1, 5):
        layer(f"roi_heads.mask_head.mask_fcn{n}", pyramid, pyramid, 3, 3, norm=group)
    layer("roi_heads.mask_head.deconv", pyramid, pyramid, 2, 2)
    layer("roi_heads.mask_head.predictor", 80, pyramid, 1, 1)
    state["pixel_mean"] = np.float32([103.53, 116.28, 123.675]).reshape(3, 1, 1)
    state["pixel_std"] = np.ones((3, 1, 1), np.float32)
    return state
