"""Prediction of panoptic results: `Predictor("nuclei")("cells.png")`."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, overload

import torch
from torch import Tensor

from refine.checkpoint.folder import SavedModel, load_model
from refine.data.transforms import network_size, resize_for_test
from refine.errors import RefineError
from refine.formats.image_like import ImageLike, to_tensor
from refine.fusion import FusionConfig, Method, fuse
from refine.fusion.config import HEADS, Head, check_known, methods_with
from refine.inference.limits import IN_PYTHON, Limits
from refine.modeling.model import NetworkOutput, PanopticModel
from refine.ops.semantic import semantic_map, semantic_probabilities
from refine.runtime import find_device
from refine.structures import Categories, Instances, PanopticResult, Prediction
from refine.structures.images import padded_size

GPU_BATCH = 8
"""Images of a list that are predicted in one batch on a GPU; on a CPU a batch would only cost memory."""


class Predictor:
    """Model with the settings to predict panoptic results of images.

    The result of an image does not depend on the other images in its list: only images that are padded to the
    same size share a batch, because the statistics of normalisation layers include the padding. On a GPU, kernels
    may sum in another order for another batch size; on a CPU, images are predicted one at a time with
    bit-identical results.

    Args:
        checkpoint: name of a model (see `refine models`), folder of a trained model, or a loaded model. A loaded
            model keeps its mode (training or evaluation) and its device.
        device: "cpu", "cuda", …; None stands for the GPU if there is one, or for the device of a loaded model. A
            loaded model on another device is copied.
        method: fusion rule; None stands for the checkpoint's.
        fusion: fusion thresholds, or a mapping of those that differ from the checkpoint's.
        precision: "bf16" or "fp16" runs the network under autocast.
        compiled: whether to compile backbone and FPN in place with torch.compile, once per image size.

    Raises:
        RefineError: the checkpoint or device does not exist or is broken, the model has no head for the method,
            or a threshold is unknown or out of range.
    """

    def __init__(
        self,
        checkpoint: str | Path | SavedModel,
        *,
        device: str | torch.device | None = None,
        method: Method | None = None,
        fusion: FusionConfig | Mapping[str, Any] | None = None,
        precision: Literal["32", "bf16", "fp16"] = "32",
        compiled: bool = False,
    ) -> None:
        saved = checkpoint if isinstance(checkpoint, SavedModel) else load_model(checkpoint)
        self.model: PanopticModel = _placed(saved.model, device, held=saved is checkpoint)
        self.device = self.model.pixel_mean.device
        self.categories: Categories = saved.categories
        self.test_size = saved.test_size
        self.method: Method = method or saved.method
        self.fusion = fusion if isinstance(fusion, FusionConfig) else saved.fusion.changed(fusion or {})
        check_method(self.method, self.model)
        if compiled:
            self.model.backbone.compile()
            self.model.fpn.compile()
        self._warned: set[str] = set()
        self.autocast = {"32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]

    @overload
    def __call__(self, image: ImageLike) -> PanopticResult: ...

    @overload
    def __call__(self, image: list[ImageLike]) -> list[PanopticResult]: ...

    def __call__(self, image: ImageLike | list[ImageLike]) -> PanopticResult | list[PanopticResult]:
        """Predict one image or a list of images.

        Args:
            image: path, encoded bytes, Pillow image, array [H, W, 3] or [H, W], or Tensor[3, H, W], uint8 or
                floats 0-1 (see `refine.formats.image_like.to_tensor`); or a list of these, which is read and
                predicted a few images at a time.

        Returns:
            One result at the size of the image, or one per image of a list.

        Warns:
            UserWarning: objects may be missing, because an image has as many as the model can find, or is much
                reduced for the network; once for each of these reasons.

        Raises:
            RefineError: a file cannot be read.
            ValueError: an array or tensor has another shape or dtype.
            TypeError: `image` is of another type.
        """
        if not isinstance(image, list | tuple):
            return self._results([("the image", to_tensor(image))])[0]
        at_once = GPU_BATCH if self.device.type == "cuda" else 1
        results = []
        for start in range(0, len(image), at_once):
            numbers = range(start, min(start + at_once, len(image)))
            results += self._results([(f"images[{n}]", _nth(image, n)) for n in numbers])
        return results

    def _results(self, named: Sequence[tuple[str, Tensor]]) -> list[PanopticResult]:
        """Predict named images, and warn if objects may be missing for a reason that was not warned of before."""
        limits, threshold = self.limits(), self.fusion.score_threshold
        raws = self.predict_raw([image for _, image in named], threshold)
        for (name, _), raw in zip(named, raws, strict=True):
            limits.add(name, raw, threshold, self.test_size)
        for reason, remark in limits.remarks(IN_PYTHON).items():
            if reason not in self._warned:
                self._warned.add(reason)
                warnings.warn(remark, stacklevel=3)
        return [self.fuse(raw) for raw in raws]

    def limits(self) -> Limits:
        """Return an empty record of images in which objects may be missing, with the model's present maximum."""
        return Limits(self.model.config.box_head.max_detections)

    @torch.inference_mode()
    def fuse(
        self, raw: Prediction, method: Method | None = None, fusion: FusionConfig | None = None
    ) -> PanopticResult:
        """Fuse an output of `predict_raw`; method and thresholds default to the predictor's."""
        return fuse(
            raw.instances,
            raw.sem_seg,
            categories=self.categories,
            method=method or self.method,
            sem_confidence=raw.sem_confidence,
            sem_probabilities=raw.sem_probabilities,
            config=fusion or self.fusion,
            **self.fusion_heads(),
        )

    def fusion_heads(self) -> dict[Head, Any]:
        """Return the arguments `occlusion` and `ranking` of `refine.fuse`; see the function `fusion_heads`."""
        return fusion_heads(self.model, self.test_size)

    @torch.inference_mode()
    def predict_raw(self, images: Sequence[Tensor], min_score: float = 0.0) -> list[Prediction]:
        """Run the network without fusion; images that are padded to the same size share a batch.

        Args:
            images: images of any sizes, each Tensor[3, H, W] uint8 RGB.
            min_score: minimum score of the detections, 0-1; see `PanopticModel.predict`.

        Returns:
            One prediction per image, in the same order and at the size of the image.
        """
        resized = [resize_for_test(image.to(self.device), *self.test_size) for image in images]
        batches: dict[tuple[int, int], list[int]] = {}
        for n, image in enumerate(resized):
            frame = padded_size((image.shape[1], image.shape[2]), self.model.config.divisor)
            batches.setdefault(frame, []).append(n)
        outputs: dict[int, NetworkOutput] = {}
        for indices in batches.values():
            batch = self.model.image_batch([resized[n] for n in indices])
            with _evaluation_mode(self.model), self._precision():
                outputs |= zip(indices, self.model.predict(batch, min_score), strict=True)
        for n, output in outputs.items():
            output.check_finite(f"image {n + 1} of {len(images)}")
        return [
            rescale(outputs[n], (image.shape[1], image.shape[2]), self.model.semantic_classes)
            for n, image in enumerate(images)
        ]

    def _precision(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, self.autocast) if self.autocast else nullcontext()


def _placed(model: PanopticModel, device: str | torch.device | None, held: bool) -> PanopticModel:
    """Return the model on the device; a copy if it must be moved and the caller holds it."""
    current = model.pixel_mean.device
    target = current if held and device is None else torch.empty(0, device=find_device(device)).device
    if target == current:
        return model
    return (copy.deepcopy(model) if held else model).to(target)


@contextmanager
def _evaluation_mode(model: PanopticModel) -> Iterator[None]:
    """Set evaluation mode inside the context, and restore the mode of every module after it."""
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _nth(images: Sequence[ImageLike], n: int) -> Tensor:
    """Convert one image of a list; errors name its index."""
    try:
        return to_tensor(images[n])
    except (RefineError, ValueError, TypeError) as error:
        raise type(error)(f"images[{n}]: {error}") from error


def fusion_heads(model: PanopticModel, test_size: tuple[int, int]) -> dict[Head, Any]:
    """Return the arguments `occlusion` and `ranking` of `refine.fuse`: functions of a model's heads, or None.

    The ranking is computed on boxes in the resized image, as in training.

    Args:
        model: network with or without these heads.
        test_size: (short, long) side in pixels that images are resized to.
    """

    def ranking(instances: Instances) -> Tensor:
        assert model.ranking is not None
        return model.ranking.predict(instances, network_size(instances.image_size, *test_size))

    return {
        "occlusion": None if model.occlusion is None else model.occlusion.predict,
        "ranking": None if model.ranking is None else ranking,
    }


@dataclass(frozen=True)
class ClassProbabilities:
    """Function that computes `Prediction.sem_probabilities` from the logits of the resized image.

    Attributes:
        logits: Tensor[L, h, w], logits of the semantic channels.
        image_size: (height, width) of the resized image in pixels.
        output_size: (height, width) of the original image in pixels.
        classes: Tensor[L] int64, class of each channel, or below 0 for none.
    """

    logits: Tensor
    image_size: tuple[int, int]
    output_size: tuple[int, int]
    classes: Tensor

    def __call__(self) -> Tensor:
        of_channels = semantic_probabilities(self.logits, self.image_size, self.output_size)
        known = self.classes >= 0
        of_classes = of_channels.new_zeros(int(self.classes.max()) + 1, *self.output_size)
        return of_classes.index_copy(0, self.classes[known], of_channels[known])


def rescale(prediction: NetworkOutput, size: tuple[int, int], semantic_classes: Tensor) -> Prediction:
    """Rescale a prediction from the resized image to the original image.

    Args:
        prediction: output of the network for the resized image.
        size: (height, width) of the original image in pixels.
        semantic_classes: Tensor[L] int64, class of each semantic channel.
    """
    channels, confidence = semantic_map(prediction.sem_logits, prediction.image_size, size)
    (height, width), instances = prediction.image_size, prediction.instances
    scale = instances.boxes.new_tensor([size[1] / width, size[0] / height] * 2)
    instances = replace(instances, image_size=size, boxes=instances.boxes * scale)
    probabilities = ClassProbabilities(prediction.sem_logits, prediction.image_size, size, semantic_classes)
    return Prediction(instances, semantic_classes[channels.long()], confidence, probabilities)


def limit_detections(model: PanopticModel, most: int) -> None:
    """Set a model's maximum number of detections in place; the numbers of proposals rise in proportion."""
    box_head, rpn = model.config.box_head, model.config.rpn
    factor = max(1.0, most / box_head.max_detections)
    before, after = ((train, math.ceil(test * factor)) for train, test in (rpn.pre_nms_top_n, rpn.post_nms_top_n))
    rpn = replace(rpn, pre_nms_top_n=before, post_nms_top_n=after)
    box_head = replace(box_head, max_detections=most)
    model.config = replace(model.config, rpn=rpn, box_head=box_head)
    model.rpn.config, model.box_heads.config = rpn, box_head


def check_method(method: str, model: PanopticModel) -> None:
    """Raise RefineError if a fusion rule is unknown, or the model does not have the head that it needs."""
    check_known(method)
    if method not in possible_methods(model):
        raise RefineError(
            f"method {method!r}: the model has no {HEADS[method]} head; train one "
            f"(`optim.train_only`), or use heuristic or shr"
        )


def possible_methods(model: PanopticModel) -> list[Method]:
    """Return the fusion rules whose heads a model has."""
    return methods_with([name for name in get_args(Head) if getattr(model, name) is not None])
