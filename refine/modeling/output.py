"""Output of the network, before fusion."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from refine.structures import Instances
from refine.tensors import check_finite


@dataclass
class NetworkOutput:
    """Output of the network for one image, before fusion.

    Attributes:
        instances: boxes, scores, labels and `roi_masks` (and `features` if the model has an occlusion head), in
            pixels of the unpadded network input, by decreasing score.
        sem_logits: Tensor[L, h, w], P_sem^(T) at stride 4 of the padded input.
        image_size: (height, width) of the unpadded network input.
        boxes_finite: Tensor[] bool, whether all outputs of the RPN and box heads, or of the detector, were finite,
            including those of boxes that became no instances; None if the boxes were given.
    """

    instances: Instances
    sem_logits: Tensor
    image_size: tuple[int, int]
    boxes_finite: Tensor | None = None

    def check_finite(self, image: str) -> None:
        """Raise RefineError if a value is NaN or infinite; `image` names the image in the message."""
        found = self.instances
        values = {"boxes": found.boxes, "scores": found.scores, "semantic logits": self.sem_logits}
        if self.boxes_finite is not None:
            values["proposals and box scores"] = self.boxes_finite.float().log()  # 0 or -inf
        check_finite(values if found.roi_masks is None else values | {"masks": found.roi_masks}, image)
