"""Comparison of an exported model with PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from refine.data.synthetic.scenes import make_scene
from refine.errors import RefineError
from refine.inference.predictor import Predictor
from refine.structures import PanopticResult

Arrays = dict[str, np.ndarray]
"""Outputs of an exported model by name; see `refine.export.panoptic.OUTPUTS`."""

PIXELS = 0.999
"""Minimum fraction of pixels that show the same segment."""


@dataclass(frozen=True)
class Agreement:
    """How well the outputs for one image agree.

    Attributes:
        name: name of the image.
        size: (height, width) in pixels.
        segments: numbers of segments by PyTorch and by the exported model.
        pixels: fraction of pixels that show the same segment, 0-1.
        boxes, scores, masks: largest difference of the boxes in pixels, of the scores and of the mask
            probabilities; infinite if the instances are not the same.
        same: whether both have the same segments: classes in the order of their ids.
    """

    name: str
    size: tuple[int, int]
    segments: tuple[int, int]
    pixels: float
    boxes: float
    scores: float
    masks: float
    same: bool

    @property
    def good(self) -> bool:
        """Whether the results are equal within the tolerance."""
        return self.same and self.pixels >= PIXELS

    def __str__(self) -> str:
        numbers = str(self.segments[0]) if self.same else f"{self.segments[0]} and {self.segments[1]}, not the same"
        return (
            f"{self.name} ({self.size[1]} × {self.size[0]}): equal pixels {100 * self.pixels:.3f} %, segments "
            f"{numbers}; largest difference: boxes {self.boxes:.2g} px, scores {self.scores:.2g}, masks "
            f"{self.masks:.2g}"
        )


def sample_images() -> list[tuple[str, Tensor]]:
    """Return drawn scenes of several shapes, and an image without objects: names and Tensor[3, H, W] uint8."""
    sizes = {"landscape": (240, 320), "portrait": (331, 250), "wide": (128, 512)}
    scenes = {
        name: torch.from_numpy(make_scene(0, n, size).image).permute(2, 0, 1).contiguous()
        for n, (name, size) in enumerate(sizes.items())
    }
    return [*scenes.items(), ("empty", torch.full((3, 90, 70), 127, dtype=torch.uint8))]


def compare(
    predictor: Predictor, run: Callable[[Tensor], Arrays], images: Iterable[tuple[str, Tensor]]
) -> list[Agreement]:
    """Compare an exported model with the predictor that it was exported from.

    Args:
        predictor: PyTorch model, with the fusion rule and thresholds of the exported one.
        run: exported model, Tensor[3, H, W] uint8 -> outputs.
        images: images with their names.
    """
    return [_agreement(predictor, run, name, image) for name, image in images]


def _agreement(predictor: Predictor, run: Callable[[Tensor], Arrays], name: str, image: Tensor) -> Agreement:
    raw = predictor.predict_raw([image], predictor.fusion.score_threshold)[0]
    result, found = predictor.fuse(raw), run(image)
    used = raw.instances.scores >= predictor.fusion.score_threshold
    ours = raw.instances[used]
    assert ours.roi_masks is not None
    theirs = found["instance_scores"] >= predictor.fusion.score_threshold
    boxes = scores = masks = float("inf")
    labels = found["instance_labels"][theirs]
    if len(ours) == len(labels) and (ours.labels.numpy() == labels).all():
        boxes, scores, masks = (
            float(np.abs(one.numpy() - other[theirs]).max(initial=0))
            for one, other in (
                (ours.boxes, found["instance_boxes"]),
                (ours.scores, found["instance_scores"]),
                (ours.roi_masks, found["instance_masks"]),
            )
        )
    classes = list(zip(found["segments_category_id"].tolist(), found["segments_isthing"].tolist(), strict=True))
    return Agreement(
        name,
        (image.shape[1], image.shape[2]),
        (len(result), len(classes)),
        _equal_pixels(result, found),
        boxes,
        scores,
        masks,
        [(s.category_id, s.isthing) for s in result.segments] == classes,
    )


def _equal_pixels(result: PanopticResult, found: Arrays) -> float:
    """Return the fraction of pixels that show the same segment: of each segment, the largest of its class."""
    ours, theirs = result.segment_ids.numpy().ravel(), found["segment_ids"].ravel()
    most = int(max(ours.max(), theirs.max())) + 1
    pairs = np.bincount(ours.astype(np.int64) * most + theirs, minlength=most * most).reshape(most, most)
    of_ours, of_theirs = np.zeros(most, np.int64), np.zeros(most, np.int64)
    for segment in result.segments:
        of_ours[segment.id] = segment.category_id
    of_theirs[found["segments_id"]] = found["segments_category_id"]
    pairs[of_ours[:, None] != of_theirs] = 0
    return float(pairs.max(1).sum() / ours.size)


def require(agreements: Iterable[Agreement]) -> None:
    """Raise RefineError if an image does not agree."""
    for agreement in agreements:
        if not agreement.good:
            raise RefineError(
                f"the exported model differs from PyTorch, nothing was written: {agreement}; expected the same "
                f"segments and at least {100 * PIXELS} % equal pixels"
            )
