"""Networks of refine: trained by `refine train`, or converted."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from refine.checkpoint.folder import SavedModel
from refine.config import to_mapping
from refine.data.resize import fit_scale, network_size, resize_for_test
from refine.fusion.config import Head
from refine.modeling.folding import fold_norms
from refine.modeling.model import PanopticModel
from refine.modeling.output import NetworkOutput
from refine.modeling.winograd import use_winograd
from refine.networks.network import Network
from refine.ops.semantic import Grid, semantic_map, semantic_probabilities
from refine.runtime import find_device
from refine.structures import Instances, Prediction
from refine.structures.images import padded_size
from refine.tensors import digest

Precision = Literal["32", "bf16", "fp16"]


@dataclass(frozen=True)
class Part:
    """Image, or part of one, that is resized for the network.

    Attributes:
        pixels: resized pixels, Tensor[3, h, w] uint8 RGB.
        size: (height, width) in pixels of the image.
        grid: place of the resized pixels in the part; None stands for pixels that fill it.
    """

    pixels: Tensor
    size: tuple[int, int]
    grid: Grid | None = None


class NativeNetwork(Network):
    """Network of a `SavedModel`, which keeps its mode (training or evaluation).

    Args:
        saved: network with its metadata.
        device: "cpu", "cuda", …; None stands for the device of the network. A network on another device is copied.
        precision: "bf16" or "fp16" runs the network under autocast.
        compiled: whether to compile backbone and FPN with torch.compile, once per image size and with constant
            weights. A network that the caller holds is copied, so that it can be trained further.
        folded: whether to fold norms into convolutions in place, and to use faster convolutions on a CPU, for a
            network that the caller does not hold.

    Raises:
        RefineError: the device does not exist.
    """

    def __init__(
        self,
        saved: SavedModel,
        device: str | torch.device | None = None,
        precision: Precision = "32",
        compiled: bool = False,
        folded: bool = False,
    ) -> None:
        self.model = _placed(saved.model, device)
        self._weights = digest(self.model.state_dict()) if folded else None
        self._config = saved.model.config  # `limit_detections` replaces that of the model
        if folded:
            fold_norms(self.model)
        self.device = self.model.pixel_mean.device
        if folded and not compiled and self.device.type == "cpu":
            use_winograd(self.model)
        self.categories, self.test_size = saved.categories, saved.test_size
        self.method, self.fusion = saved.method, saved.fusion
        config = self.model.config
        self.max_detections = (config.detector or config.box_head).max_detections
        self.autocast = {"32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        if compiled:
            self.model = copy.deepcopy(self.model) if self.model is saved.model else self.model
            for part in (self.model.backbone, self.model.fpn):
                part.compile(options={"freezing": True})  # folds norms into convolutions

    def predict(self, images: Sequence[Tensor], min_score: float = 0.0) -> list[Prediction]:
        """Predict images; those that are padded to the same size share a batch. See `Network.predict`."""
        assert self.test_size is not None
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        resized = [resize_for_test(image.to(self.device), *self.test_size) for image in images]
        predictions = self.predict_parts([Part(*part) for part in zip(resized, sizes, strict=True)], min_score)
        scales = [fit_scale(size, *self.test_size) for size in sizes]
        return [replace(p, scale=scale) for p, scale in zip(predictions, scales, strict=True)]

    def predict_parts(self, parts: Sequence[Part], min_score: float = 0.0) -> list[Prediction]:
        """Predict images that are resized already; otherwise as `predict`.

        Returns:
            One prediction per part, at its size and with scale 1.
        """
        batches: dict[tuple[int, int], list[int]] = {}
        for n, part in enumerate(parts):
            frame = padded_size((part.pixels.shape[1], part.pixels.shape[2]), self.model.config.divisor)
            batches.setdefault(frame, []).append(n)
        outputs: dict[int, NetworkOutput] = {}
        for indices in batches.values():
            batch = self.model.image_batch([parts[n].pixels for n in indices])
            with _evaluation_mode(self.model), self._precision():
                outputs |= zip(indices, self.model.predict(batch, min_score), strict=True)
        half = self.autocast == torch.float16  # overflows above 65,504
        for n, output in outputs.items():
            output.check_finite(f"image {n + 1} of {len(parts)}" + (" (fp16; try bf16)" if half else ""))
        classes = self.model.semantic_classes
        return [rescale(outputs[n], part.size, classes, part.grid) for n, part in enumerate(parts)]

    def digest(self) -> str:
        """Return a digest of the weights and their names, before folding, and of the config of the network."""
        content = [self._weights or digest(self.model.state_dict()), to_mapping(self._config)]
        return hashlib.blake2b(json.dumps(content).encode(), digest_size=8).hexdigest()

    def fusion_heads(self) -> dict[Head, Any]:
        """Return the functions of the occlusion and ranking heads that the network has.

        The ranking is computed on boxes in the resized image, as in training.
        """
        occlusion, ranking = self.model.occlusion, self.model.ranking
        heads: dict[Head, Any] = {}
        if occlusion is not None:
            heads["occlusion"] = occlusion.predict
        if ranking is not None:

            def rank(instances: Instances) -> Tensor:
                assert self.test_size is not None
                return ranking.predict(instances, network_size(instances.image_size, *self.test_size))

            heads["ranking"] = rank
        return heads

    def limit_detections(self, most: int) -> None:
        """Set the maximum number of detections in place; the numbers of proposals rise in proportion."""
        model, config = self.model, self.model.config
        if model.detector is not None and config.detector is not None:
            detector = replace(config.detector, max_detections=most)
            model.config, model.detector.config = replace(config, detector=detector), detector
        else:
            rpn, factor = config.rpn, max(1.0, most / config.box_head.max_detections)
            before, after = (
                (train, math.ceil(test * factor)) for train, test in (rpn.pre_nms_top_n, rpn.post_nms_top_n)
            )
            rpn = replace(rpn, pre_nms_top_n=before, post_nms_top_n=after)
            box_head = replace(config.box_head, max_detections=most)
            model.config = replace(config, rpn=rpn, box_head=box_head)
            model.rpn.config, model.box_heads.config = rpn, box_head
        self.max_detections = most

    def _precision(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, self.autocast) if self.autocast else nullcontext()


def _placed(model: PanopticModel, device: str | torch.device | None) -> PanopticModel:
    """Return the model if it is on the device, else a copy there."""
    current = model.pixel_mean.device
    target = current if device is None else torch.empty(0, device=find_device(device)).device
    return model if target == current else copy.deepcopy(model).to(target)


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


@dataclass(frozen=True)
class ClassProbabilities:
    """Function that computes `Prediction.sem_probabilities` from the logits of the resized image.

    Attributes:
        logits: Tensor[L, h, w], logits of the semantic channels.
        image_size: (height, width) of the resized image in pixels.
        output_size: (height, width) of the original image in pixels.
        classes: Tensor[L] int64, class of each channel, or below 0 for none.
        grid: place of the resized image in the output; None stands for one that fills it.
    """

    logits: Tensor
    image_size: tuple[int, int]
    output_size: tuple[int, int]
    classes: Tensor
    grid: Grid | None = None

    def __call__(self) -> Tensor:
        of_channels = semantic_probabilities(self.logits, self.image_size, self.output_size, grid=self.grid)
        known = self.classes >= 0
        of_classes = of_channels.new_zeros(int(self.classes.max()) + 1, *self.output_size)
        return of_classes.index_copy(0, self.classes[known], of_channels[known])


def rescale(
    prediction: NetworkOutput, size: tuple[int, int], semantic_classes: Tensor, grid: Grid | None = None
) -> Prediction:
    """Rescale a prediction from the resized image to the original image.

    Args:
        prediction: output of the network for the resized image.
        size: (height, width) of the original image in pixels.
        semantic_classes: Tensor[L] int64, class of each semantic channel.
        grid: place of the resized image in the original; None stands for one that fills it.
    """
    channels, confidence = semantic_map(prediction.sem_logits, prediction.image_size, size, grid=grid)
    (height, width), instances = prediction.image_size, prediction.instances
    (down, right), (top, left) = (grid.step, grid.origin) if grid else ((size[0] / height, size[1] / width), (0, 0))
    x, y = instances.boxes.unflatten(1, (2, 2)).unbind(2)
    boxes = torch.stack([x * right + left, y * down + top], 2).flatten(1)
    instances = replace(instances, image_size=size, boxes=boxes)
    probabilities = ClassProbabilities(prediction.sem_logits, prediction.image_size, size, semantic_classes, grid)
    return Prediction(instances, semantic_classes[channels.long()], confidence, probabilities)
