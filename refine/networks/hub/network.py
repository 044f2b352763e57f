"""Networks of transformers: universal models, and semantic models."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from refine.errors import RefineError, is_out_of_memory
from refine.fusion.config import OWN_MERGE, AnyMethod, FusionConfig
from refine.networks.hub.pixels import PixelScores, of_patches
from refine.networks.hub.queries import Queries
from refine.networks.native import Precision
from refine.networks.network import Network
from refine.structures import Categories, Prediction
from refine.tensors import check_finite, digest

MASK2FORMER_SIZE = (384, 384)
"""Size in pixels to which Mask2Former's post-processing resizes all masks first."""

OUTPUTS = ("class_queries_logits", "masks_queries_logits", "logits", "pred_masks")
"""Names of the outputs that are used."""


@dataclass(frozen=True)
class Resized:
    """Input of a model for one image.

    Attributes:
        inputs: tensors for the model, by argument.
        size: (height, width) in pixels of the resized image, without padding and before it is cut into patches.
        patches: first pixel and pixel after the last of each patch along the long side; empty if it is not cut.
    """

    inputs: Mapping[str, Tensor]
    size: tuple[int, int]
    patches: list[tuple[int, int]]


class HubNetwork(Network):
    """Base class of networks of transformers; images are predicted one at a time.

    Args:
        model: model in evaluation mode on its device.
        processor: image processor of the model.
        categories: categories of the predictions.
        classes: contiguous class of each label of the model, or `VOID`.
        precision: "bf16" or "fp16" runs the model under autocast.
        compiled: whether to compile the model in place with torch.compile, once per image size.
        tokens: Tensor[1, n] int64, OneFormer's task, or None for other models.

    Attributes:
        names: for a model of several, the label of each category by name, which a class map may name; empty if
            that class map has renamed the labels already. None for a model of its own.
    """

    method: AnyMethod = "heuristic"
    max_detections = None
    names: Mapping[str, str] | None = None

    def __init__(
        self,
        model: Any,
        processor: Any,
        categories: Categories,
        classes: Sequence[int],
        precision: Precision = "32",
        compiled: bool = False,
        tokens: Tensor | None = None,
    ) -> None:
        self.model, self.processor, self.categories = model, processor, categories
        self.device: torch.device = model.device
        self.classes = torch.tensor(classes, device=self.device)
        self.fusion = FusionConfig()
        self.autocast = {"32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        self.tokens = None if tokens is None else tokens.to(self.device)
        self.is_eomt: bool = model.config.model_type.startswith("eomt")
        sides = (processor.size.shortest_edge, processor.size.longest_edge)
        self.test_size: tuple[int, int] | None = sides if all(sides) and not self.is_eomt else None
        if compiled:
            model.compile()

    @abstractmethod
    def read(
        self, outputs: Mapping[str, Tensor], resized: Resized, size: tuple[int, int], min_score: float
    ) -> Prediction:
        """Convert the outputs of the model for one image of `size` (height, width) to a prediction."""

    def predict(self, images: Sequence[Tensor], min_score: float = 0.0) -> list[Prediction]:
        predictions = []
        for n, image in enumerate(images):
            resized = self._resize(image)
            with self._precision():
                outputs = self.model(**resized.inputs)
            used = {name: outputs[name].float() for name in OUTPUTS if outputs.get(name) is not None}
            check_finite(used, f"image {n + 1} of {len(images)}")
            predictions.append(self.read(used, resized, (image.shape[1], image.shape[2]), min_score))
        return predictions

    def digest(self) -> str:
        """Return a digest of the weights and their names, and of the class of each label."""
        return digest({**self.model.state_dict(), "classes": self.classes})

    def _resize(self, image: Tensor) -> Resized:
        """Resize and normalise an image with the model's own processor."""
        options: dict[str, Any] = {"return_tensors": "pt", "input_data_format": "channels_first"}
        if self.test_size is not None:
            options["size"] = {"shortest_edge": self.test_size[0], "longest_edge": self.test_size[1]}
        if getattr(self.processor, "do_center_crop", False):
            options["do_center_crop"] = False  # the whole image is segmented
        try:
            given = self.processor(images=[image.to(self.device)], **options)
        except (ValueError, RuntimeError) as error:  # of side 0 after resizing
            if is_out_of_memory(error):
                raise
            height, width = image.shape[1:]
            problem = f"the image: {width} × {height} pixels cannot be resized for this model; crop or pad it"
            raise RefineError(problem) from error
        inputs = {name: given[name].to(self.device) for name in ("pixel_values", "pixel_mask") if name in given}
        if self.tokens is not None:
            inputs["task_inputs"] = self.tokens
        size = (inputs["pixel_values"].shape[-2], inputs["pixel_values"].shape[-1])
        if self.is_eomt:
            from transformers.image_transforms import get_size_with_aspect_ratio

            sides = self.processor.size
            size = get_size_with_aspect_ratio(tuple(image.shape[1:]), sides.shortest_edge, sides.longest_edge)
        return Resized(inputs, size, [(start, end) for _, start, end in given.get("patch_offsets", [])])

    def _precision(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, self.autocast) if self.autocast else nullcontext()


class QueryNetwork(HubNetwork):
    """Universal model, whose queries become instances and the semantic map; see `Queries`.

    A model that cuts images into patches (semantic EoMT) has no queries of whole images, and gives semantics alone.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.method: AnyMethod = "heuristic" if getattr(self.processor, "do_split_image", False) else OWN_MERGE

    def read(
        self, outputs: Mapping[str, Tensor], resized: Resized, size: tuple[int, int], min_score: float
    ) -> Prediction:
        logits, maps = outputs.values()
        if self.model.config.model_type == "mask2former":
            maps = F.interpolate(maps, MASK2FORMER_SIZE, mode="bilinear", align_corners=False)
        elif self.is_eomt:  # to the size of the input, without its padding
            maps = F.interpolate(maps, resized.inputs["pixel_values"].shape[-2:], mode="bilinear")
            maps = maps if resized.patches else maps[..., : resized.size[0], : resized.size[1]]
        probabilities, masks = logits.softmax(-1), maps.sigmoid()
        scores = self._of_classes(probabilities)
        semantic = torch.einsum("pqc,pqhw->pchw", scores, masks)
        scale = min(resized.size[0] / size[0], resized.size[1] / size[1])
        if resized.patches:
            return PixelScores(of_patches(semantic, resized.patches, resized.size), size, False).prediction(scale)
        best, label = probabilities[0].max(-1)
        is_object = label < len(self.classes)
        queries = Queries(
            scores=scores[0],
            best=best,
            is_object=is_object,
            label=self.classes[torch.where(is_object, label, 0)],
            maps=maps[0] if self.is_eomt else masks[0],
            of_logits=self.is_eomt,
            semantic=semantic[0],
            size=size,
        )
        return queries.prediction(self.categories, min_score, scale)

    def _of_classes(self, probabilities: Tensor) -> Tensor:
        """Select the probabilities of refine's classes: Tensor[P, Q, L + 1] → Tensor[P, Q, C]."""
        known = self.classes >= 0
        chosen = probabilities.new_zeros(*probabilities.shape[:2], len(self.categories))
        return chosen.index_copy(2, self.classes[known], probabilities[..., :-1][..., known])


class PixelNetwork(HubNetwork):
    """Semantic model, which finds no instances; alone, it gives stuff only."""

    def read(
        self, outputs: Mapping[str, Tensor], resized: Resized, size: tuple[int, int], min_score: float
    ) -> Prediction:
        logits, known = outputs["logits"][0], self.classes >= 0
        least = torch.finfo(logits.dtype).min  # probability 0, and finite when it is interpolated
        chosen = logits.new_full((len(self.categories), *logits.shape[1:]), least)
        maps = chosen.index_copy(0, self.classes[known], logits[known])
        scale = min(resized.size[0] / size[0], resized.size[1] / size[1])
        return PixelScores(maps, size, softmax=True).prediction(scale)
