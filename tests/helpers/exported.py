"""Small models of every kind that `refine export` supports, with random weights, and results to compare."""

from __future__ import annotations

from dataclasses import replace

import torch
from helpers.tiny_network import tiny_config
from torch import Tensor

from refine.checkpoint.folder import SavedModel
from refine.data.synthetic.scenes import make_scene
from refine.export.panoptic import THRESHOLDS, ExportPanoptic
from refine.export.verify import Arrays
from refine.fusion import FusionConfig
from refine.modeling.config import ModelConfig, OcclusionConfig, RPNConfig
from refine.modeling.model import PanopticModel
from refine.structures import Categories, Category

CATEGORIES = Categories([Category(10 + n, f"c{n}", n < 3, (n, n, n)) for n in range(6)])
BOXES = {"score_threshold": 0.25, "max_detections": 40}
# Few proposals: of thousands of random boxes, some pair would be so close to the threshold of NMS that rounding
# decides about it.
PROPOSALS = RPNConfig(pre_nms_top_n=(200, 150), post_nms_top_n=(200, 150))


def _panoptic_fpn() -> ModelConfig:
    config = tiny_config(0, BOXES, rpn=PROPOSALS)
    return replace(config, semantic_head=replace(config.semantic_head, classes="stuff"))


def _cascade() -> ModelConfig:
    config = tiny_config(3, BOXES | {"ious": [0.5, 0.6, 0.7], "class_agnostic": True}, rpn=PROPOSALS)
    backbone = replace(config.backbone, name="resnet50", deform_stages=[3, 4, 5])
    return replace(config, backbone=backbone, occlusion=OcclusionConfig(conv_channels=16, fc_channels=16))


def _residual() -> ModelConfig:
    config = tiny_config(2, BOXES, rpn=PROPOSALS)
    backbone = replace(config.backbone, norm="frozen_bn", deform_stages=[5], modulated=True)
    ibpp = replace(config.ibpp, exchange="balanced", residual=True, shared=True)
    config.mask_head.semantic_weight = 0.5
    occlusion = OcclusionConfig(cues=["mask", "label"], conv_channels=16, fc_channels=16)
    semantic_head = replace(config.semantic_head, channels=config.fpn_channels // 2)
    return replace(config, backbone=backbone, ibpp=ibpp, occlusion=occlusion, semantic_head=semantic_head)


CONFIGS = {"Panoptic-FPN": _panoptic_fpn, "cascade DCN REFINE": _cascade, "residual balanced REFINE": _residual}


def tiny_model(kind: str) -> SavedModel:
    """Return a model of `CONFIGS` whose random predictions differ from pixel to pixel."""
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(1)
    model = PanopticModel(CONFIGS[kind](), 3, 6).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".offset." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.01)
            elif "classifier" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
            elif any(part in name for part in ("predictor", "objectness", "deltas")):
                spread = 0.5 if parameter.ndim > 1 else 0.1
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
            elif "regressor" in name:
                parameter.mul_(3)
            elif not parameter.any() and parameter.ndim > 1:  # inputs that a balanced exchange adds later
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    method = "soe" if model.occlusion is not None else "heuristic"
    fusion = FusionConfig(score_threshold=0.25, stuff_area=20, unknown_erasing=True, ue_threshold=0.4)
    return SavedModel(model, CATEGORIES, (160, 320), method, fusion)


def image_of(size: tuple[int, int], seed: int = 0) -> Tensor:
    """Return a drawn scene, Tensor[3, H, W] uint8."""
    return torch.from_numpy(make_scene(seed, 0, size).image).permute(2, 0, 1).contiguous()


def export_model(saved: SavedModel) -> ExportPanoptic:
    """Return the module that is exported, to run it in PyTorch."""
    return ExportPanoptic(saved.model, saved.categories, saved.test_size, saved.method, saved.fusion)


@torch.no_grad()
def run(module: ExportPanoptic, image: Tensor, **changes: float) -> Arrays:
    """Run the module that is exported in PyTorch; `changes` are thresholds that differ from its own."""
    values = [
        torch.tensor(float(changes.get(name, getattr(module.fusion, name))), dtype=torch.float64)
        for name in THRESHOLDS
    ]
    return {name: value.numpy() for name, value in module(image, *values).items()}
