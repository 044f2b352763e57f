"""Fusion of the files of other models: COCO instance results and semantic PNGs (`refine fuse`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from refine.checkpoint.folder import load_model
from refine.errors import RefineError
from refine.formats.adapters import from_coco
from refine.formats.fusion_inputs import read_confidence, read_semantic
from refine.fusion import FusionConfig, Method, fuse
from refine.fusion.config import HEADS
from refine.networks.native import NativeNetwork
from refine.networks.occlusion import attach_occlusion
from refine.structures import Categories, PanopticResult


@dataclass(frozen=True)
class FusionInputs:
    """Inputs of all images, which another process can receive.

    Attributes:
        instances: JSON of the detections, for messages.
        semantic, confidence: folders of the PNGs.
        categories: categories of the results.
        method: fusion rule.
        checkpoint: model with the head of a learned rule, or occlusion head; None for other rules.
        config: fusion thresholds.
    """

    instances: str
    semantic: str
    confidence: str | None
    categories: Categories
    method: Method
    checkpoint: str | None
    config: FusionConfig


@dataclass(frozen=True)
class FusionItem:
    """One image: id, file name, (height, width) in pixels, and its detections in COCO's results format."""

    image_id: int | str
    name: str
    size: tuple[int, int]
    detections: list[dict[str, Any]]


class FileFusion:
    """Fusion of one image after the other.

    Raises:
        RefineError: the rule is learned and the checkpoint does not have its head, or an input is invalid.
    """

    def __init__(self, inputs: FusionInputs) -> None:
        self.inputs = inputs
        self._learned = _learned(inputs.method, inputs.checkpoint, inputs.categories)

    def __call__(self, item: FusionItem) -> PanopticResult:
        inputs, config = self.inputs, self.inputs.config
        source = f"{inputs.instances}: image {item.image_id}"
        confidence = read_confidence(inputs.confidence, item.name, item.size) if inputs.confidence else None
        return fuse(
            from_coco(item.detections, item.size, inputs.categories, source, config.score_threshold),
            read_semantic(inputs.semantic, item.name, item.size, inputs.categories),
            categories=inputs.categories,
            method=inputs.method,
            sem_confidence=confidence,
            config=config,
            **self._learned,
        )


def _learned(method: str, checkpoint: str | None, categories: Categories) -> dict[str, Any]:
    """Return the keyword argument of `fuse` that a learned rule needs, from a checkpoint; {} for other rules."""
    name = HEADS.get(method)
    if name is None:
        if checkpoint:
            raise RefineError(f"--checkpoint: method {method!r} is not learned; omit the option")
        return {}
    if not checkpoint:
        kind = " without features, such as those of `refine train-occlusion`" if name == "occlusion" else ""
        raise RefineError(f"--method {method}: needs --checkpoint with a trained {name} head{kind}")
    if name == "occlusion":
        return {name: attach_occlusion(checkpoint, categories, "--categories")}
    saved = load_model(checkpoint)
    if saved.model.ranking is None:
        raise RefineError(f"--checkpoint {checkpoint}: has no ranking head; train one (`optim.train_only`)")
    if [c for c in saved.categories if c.isthing] != [c for c in categories if c.isthing]:
        raise RefineError(f"--checkpoint {checkpoint}: its things differ from those of --categories; use its own")
    return {name: NativeNetwork(saved).fusion_heads()[name]}
