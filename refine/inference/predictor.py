"""From an image to a panoptic result: `Predictor("nuclei")("cells.png")`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from refine.checkpoint.folder import SavedModel, load_model
from refine.data.transforms import resize_for_test
from refine.errors import RefineError
from refine.formats.images import from_pil, read_image
from refine.fusion import FusionConfig, Method, fuse
from refine.modeling.model import NetworkOutput, PanopticModel
from refine.ops.semantic import semantic_map
from refine.runtime import find_device
from refine.structures import Categories, PanopticResult, Prediction

ImageLike = str | Path | Image.Image | np.ndarray | Tensor

HEADS = {
    "srm": "ranking",
    "ocfusion": "occlusion",
    "strong": "occlusion",
    "soe": "occlusion",
}
"""Head of the model that a learned rule of fusion asks."""


class Predictor:
    """Loads a model once and turns images into panoptic results.

    Args:
        checkpoint: name of a shipped model (`refine models` lists them), the folder of a trained one, or
            a model at hand.
        device: "cpu", "cuda", …; the GPU if there is one.
        method: rule of fusion; the checkpoint's own if None.
        fusion: its thresholds; the checkpoint's own if None.
        precision: "bf16" or "fp16" runs the network under autocast.
        compiled: compile backbone and pyramid with torch.compile, again for every size of image.

    Raises:
        RefineError: no such checkpoint or device, a broken one, or one without the head that the method asks.
    """

    def __init__(
        self,
        checkpoint: str | Path | SavedModel = "nuclei",
        *,
        device: str | torch.device | None = None,
        method: Method | None = None,
        fusion: FusionConfig | None = None,
        precision: Literal["32", "bf16", "fp16"] = "32",
        compiled: bool = False,
    ) -> None:
        self.device = find_device(device)
        saved = checkpoint if isinstance(checkpoint, SavedModel) else load_model(checkpoint)
        self.model: PanopticModel = saved.model.to(self.device).eval()
        self.categories: Categories = saved.categories
        self.test_size = saved.test_size
        self.method: Method = method or saved.method
        self.fusion = fusion or saved.fusion
        check_method(self.method, self.model)
        if compiled:
            self.model.backbone.compile()
            self.model.fpn.compile()
        self.autocast = {"32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]

    def __call__(self, image: ImageLike) -> PanopticResult:
        """Panoptic result of one image, at its own size.

        Args:
            image: path, PIL image, uint8 array [H, W, 3] RGB or [H, W] grey, or Tensor[3, H, W] uint8 RGB.

        Raises:
            RefineError: the file cannot be read.
            ValueError: an array or tensor of another shape or type.
        """
        return self.fuse(self.predict_raw([to_tensor(image)], self.fusion.score_threshold)[0])

    @torch.inference_mode()
    def fuse(
        self, raw: Prediction, method: Method | None = None, fusion: FusionConfig | None = None
    ) -> PanopticResult:
        """Apply a rule of fusion, the predictor's own if not given, to what `raw` gave."""
        return fuse(
            raw.instances,
            raw.sem_seg,
            categories=self.categories,
            method=method or self.method,
            sem_confidence=raw.sem_confidence,
            config=fusion or self.fusion,
            **self.fusion_heads(),
        )

    def fusion_heads(self) -> dict[str, Any]:
        """`occlusion` and `ranking` of `refine.fuse`: the model's heads, or None."""
        heads = {name: getattr(self.model, name) for name in ("occlusion", "ranking")}
        return {name: None if head is None else head.predict for name, head in heads.items()}

    @torch.inference_mode()
    def predict_raw(self, images: Sequence[Tensor], min_score: float = 0.0) -> list[Prediction]:
        """Run the network on a batch.

        Smaller images are padded to the largest, which the convolutions see near the right and lower border:
        there results differ a little from those of one image at a time.

        Args:
            images: Tensor[3, H, W] uint8 RGB each, of any sizes.
            min_score: lowest score of the detections that will be used, 0-1; see `PanopticModel.predict`.
        """
        resized = [resize_for_test(image.to(self.device), *self.test_size) for image in images]
        with torch.autocast(self.device.type, self.autocast) if self.autocast else nullcontext():
            predictions = self.model.predict(self.model.image_batch(resized), min_score)
        return [
            rescale(p, (i.shape[1], i.shape[2]), self.model.semantic_classes)
            for p, i in zip(predictions, images, strict=True)
        ]


def rescale(prediction: NetworkOutput, size: tuple[int, int], semantic_classes: Tensor) -> Prediction:
    """Bring a prediction from the network's frame to an image of `size` (height, width).

    Args:
        prediction: of the model.
        size: of the image, in pixels.
        semantic_classes: Tensor[L] int64, class of each semantic channel.
    """
    channels, confidence = semantic_map(prediction.sem_logits, prediction.image_size, size)
    (height, width), instances = prediction.image_size, prediction.instances
    scale = instances.boxes.new_tensor([size[1] / width, size[0] / height] * 2)
    instances = replace(instances, image_size=size, boxes=instances.boxes * scale)
    return Prediction(instances, semantic_classes[channels.long()], confidence)


def check_method(method: str, model: PanopticModel) -> None:
    """Raise RefineError if there is no such rule of fusion, or the model lacks the head that it asks."""
    if method not in get_args(Method):
        raise RefineError(f"method {method!r}: unknown; give one of {', '.join(get_args(Method))}")
    if method not in possible_methods(model):
        raise RefineError(
            f"method {method!r}: the model has no {HEADS[method]} head; train one on it "
            f"(`optim.train_only`), or use heuristic or shr"
        )


def possible_methods(model: PanopticModel) -> list[Method]:
    """The rules of fusion whose heads a model has."""
    return [m for m in get_args(Method) if m not in HEADS or getattr(model, HEADS[m]) is not None]


def to_tensor(image: ImageLike) -> Tensor:
    """Any kind of image -> Tensor[3, H, W] uint8 RGB."""
    if isinstance(image, str | Path):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        return from_pil(image)
    tensor = torch.from_numpy(image) if isinstance(image, np.ndarray) else image
    if isinstance(image, np.ndarray):
        tensor = tensor[None].expand(3, -1, -1) if tensor.ndim == 2 else tensor.movedim(-1, 0)
    if tensor.ndim != 3 or tensor.shape[0] != 3 or tensor.dtype != torch.uint8 or 0 in tensor.shape:
        raise ValueError(
            f"image: expected uint8 RGB, array (H, W, 3) or tensor (3, H, W); got {image.dtype} "
            f"{tuple(image.shape)}"
        )
    return tensor
