"""Prediction of panoptic results: `Predictor("nuclei")("cells.png")`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
from torch import Tensor

from refine.checkpoint.folder import SavedModel
from refine.checkpoint.occlusion import SavedOcclusion
from refine.errors import RefineError
from refine.formats.image_like import ImageLike, to_tensor
from refine.formats.windows import open_image
from refine.fusion import FusionConfig, fuse
from refine.fusion.config import OWN_MERGE, AnyMethod, Head, check_method, methods_with
from refine.inference.limits import IN_PYTHON, Limits
from refine.inference.tiling.plan import Tiling
from refine.modeling.model import PanopticModel
from refine.networks.choice import ModelChoice
from refine.networks.load import load_network
from refine.networks.native import NativeNetwork, Precision
from refine.networks.network import Network, check_probabilities
from refine.networks.occlusion import AttachedOcclusion, attach_occlusion
from refine.structures import Categories, PanopticResult, Prediction

T = TypeVar("T")
GPU_BATCH = 8
"""Images of a list that are predicted in one batch on a GPU; on a CPU a batch would only cost memory."""


class Predictor:
    """Model with the settings to predict panoptic results of images.

        predictor = refine.Predictor("nuclei", fusion={"score_threshold": 0.4})
        result = predictor("cells.png")
        results = predictor(["a.png", "b.tif"])

    The result of an image does not depend on the other images in its list: only images that are padded to the
    same size share a batch, because the statistics of normalisation layers include the padding. On a GPU, kernels
    may sum in another order for another batch size; on a CPU, images are predicted one at a time with
    bit-identical results.

    Args:
        checkpoint: name of a model (see `refine models`), folder of a trained model, several by name, a loaded
            model, or any `Network`. A loaded model keeps its mode (training or evaluation) and its device.
        device: "cpu", "cuda", …; None stands for the GPU if there is one, or for the device of a loaded model. A
            loaded model on another device is copied.
        method: fusion rule, or "model" for the merge of a network that has one of its own; None stands for the
            checkpoint's.
        fusion: fusion thresholds, or a mapping of those that differ from the checkpoint's.
        precision: "bf16" or "fp16" runs the network under autocast.
        compiled: whether to compile the network (ours: backbone and FPN) with torch.compile, once per image size.
        tile: predict images in tiles of this side, or as a `Tiling` says; see `refine.inference.tiling`. Images are
            then not resized to the test size, but by the factor of the `Tiling`, 1 by default.
        occlusion: occlusion head of `refine train-occlusion`, or its folder, used instead of the network's own; the
            rule is then "soe" if `method` is None. None stands for that of a `ModelChoice`, if it has one.

    Raises:
        RefineError: the checkpoint or device does not exist or is broken, the model has no head for the method,
            or a threshold is unknown or out of range.
    """

    def __init__(
        self,
        checkpoint: str | Path | ModelChoice | SavedModel | Network,
        *,
        device: str | torch.device | None = None,
        method: AnyMethod | None = None,
        fusion: FusionConfig | Mapping[str, Any] | None = None,
        precision: Precision = "32",
        compiled: bool = False,
        tile: int | Tiling | None = None,
        occlusion: str | Path | SavedOcclusion | None = None,
    ) -> None:
        self.tiling = Tiling(tile) if isinstance(tile, int) else tile
        self.network = load_network(checkpoint, device=device, precision=precision, compiled=compiled)
        self.device: torch.device = self.network.device
        self.categories: Categories = self.network.categories
        if occlusion is None and isinstance(checkpoint, ModelChoice):
            occlusion = checkpoint.occlusion
        self.occlusion: AttachedOcclusion | None = None
        if occlusion is not None:
            self.occlusion = attach_occlusion(occlusion, self.categories, "the model", self.device)
        self.method: AnyMethod = method or (self.network.method if occlusion is None else "soe")
        self.fusion = fusion if isinstance(fusion, FusionConfig) else self.network.fusion.changed(fusion or {})
        self.check_method(self.method)
        if self.fusion.unknown_erasing and self.fusion.ue_region == "dilated":
            check_probabilities([self.network], "ue_region (--ue-region) 'dilated' needs; give 'core'")
        self._warned: set[str] = set()

    @property
    def model(self) -> PanopticModel:
        """The `PanopticModel`; RefineError if the predictions come from another kind of network.

        If it was loaded by name or folder, BatchNorms are folded into convolutions; to train it, use `load_model`.
        """
        if not isinstance(self.network, NativeNetwork):
            raise RefineError(f"the model: expected one of refine's own, got a {type(self.network).__name__}")
        return self.network.model

    @property
    def test_size(self) -> tuple[int, int] | None:
        """(short, long) side in pixels that images are resized to, which may be assigned; see `Network`."""
        return self.network.test_size

    @test_size.setter
    def test_size(self, size: tuple[int, int]) -> None:
        if self.network.test_size is None:
            raise RefineError("test_size: cannot be changed; the model resizes images in its own way")
        if min(size) < 2:  # which PyTorch cannot resize to
            raise RefineError(f"test_size is {size}; give at least 2 pixels for both sides")
        self.network.test_size = size

    @property
    def methods(self) -> list[AnyMethod]:
        """Fusion rules whose heads exist, and "model" if the network can merge its outputs by itself."""
        return [*methods_with(self.fusion_heads()), *([OWN_MERGE] if self.network.method == OWN_MERGE else [])]

    def check_method(self, method: str) -> None:
        """Raise RefineError if a method is unknown or is not one of `methods`."""
        if method != OWN_MERGE:
            check_method(method, self.fusion_heads())
        elif method not in self.methods:
            known = ", ".join(self.methods)
            raise RefineError(f"method 'model': this model has no merge of its own; give one of {known}")

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
            return self._results([("the image", image)])[0]
        at_once = GPU_BATCH if self.device.type == "cuda" else 1
        results = []
        for start in range(0, len(image), at_once):
            numbers = range(start, min(start + at_once, len(image)))
            results += self._results([(f"images[{n}]", image[n]) for n in numbers])
        return results

    def _results(self, named: Sequence[tuple[str, ImageLike]]) -> list[PanopticResult]:
        """Predict named images, and warn if objects may be missing for a reason that was not warned of before."""
        limits, threshold = self.limits(), self.fusion.score_threshold
        if self.tiling is not None:
            results = [self._tiled(name, image, limits) for name, image in named]
        else:
            raws = self.predict_raw([_named(name, to_tensor, image) for name, image in named], threshold)
            for (name, _), raw in zip(named, raws, strict=True):
                limits.add(name, raw, threshold)
            results = [self.fuse(raw) for raw in raws]
        for (_, image), result in zip(named, results, strict=True):
            result.path = Path(image) if isinstance(image, str | Path) else None
        for reason, remark in limits.remarks(IN_PYTHON).items():
            if reason not in self._warned:
                self._warned.add(reason)
                warnings.warn(remark, stacklevel=3)
        return results

    def _tiled(self, name: str, image: ImageLike, limits: Limits) -> PanopticResult:
        from refine.inference.tiling.predict import predict_tiles  # which needs this module

        assert self.tiling is not None
        windows = _named(name, open_image, image)
        return predict_tiles(self, windows, self.tiling, name=name, limits=limits).result()

    def limits(self) -> Limits:
        """Return an empty record of images in which objects may be missing, with the model's present maximum."""
        return Limits(self.network.max_detections, self.network.test_size is not None)

    def limit_detections(self, most: int) -> None:
        """Set the maximum number of objects per image; RefineError if it is fixed."""
        self.network.limit_detections(most)

    @torch.inference_mode()
    def fuse(
        self, raw: Prediction, method: AnyMethod | None = None, fusion: FusionConfig | None = None
    ) -> PanopticResult:
        """Fuse an output of `predict_raw`; method and thresholds default to the predictor's.

        The method "model" merges in the network's own way, of the thresholds only with `score_threshold`.
        """
        method, fusion = method or self.method, fusion or self.fusion
        if method == OWN_MERGE:
            assert raw.merge is not None  # see `check_method`
            return raw.merge(fusion.score_threshold)
        return fuse(
            raw.instances,
            raw.sem_seg,
            categories=self.categories,
            method=method,
            sem_confidence=raw.sem_confidence,
            sem_probabilities=raw.sem_probabilities,
            config=fusion,
            **self.fusion_heads(),
        )

    def fusion_heads(self, network: Network | None = None) -> dict[Head, Any]:
        """Return the arguments `occlusion` and `ranking` of `refine.fuse` for which there are heads.

        Args:
            network: copy of the network with another test size; None stands for the network itself.
        """
        heads = (network or self.network).fusion_heads()
        return heads if self.occlusion is None else {**heads, "occlusion": self.occlusion}

    @torch.inference_mode()
    def predict_raw(self, images: Sequence[Tensor], min_score: float = 0.0) -> list[Prediction]:
        """Run the network without fusion.

        Args:
            images: images of any sizes, each Tensor[3, H, W] uint8 RGB.
            min_score: minimum score of the detections, 0-1; see `Network.predict`.

        Returns:
            One prediction per image, in the same order and at the size of the image.
        """
        return self.network.predict(images, min_score)


def _named(name: str, read: Callable[[ImageLike], T], image: ImageLike) -> T:
    """Read an image; errors name it if it is one of a list."""
    try:
        return read(image)
    except (RefineError, ValueError, TypeError) as error:
        if name == "the image":
            raise
        raise type(error)(f"{name}: {error}") from error
