"""Addresses and descriptions of public weights. This module does not import torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

_DETECTRON2 = "https://dl.fbaipublicfiles.com/detectron2"
_TORCHVISION = "https://download.pytorch.org/models"
_DIGEST = re.compile(r"(?:model_final_|-(?=\d*[a-f]))([0-9a-f]{6,64})\.\w+$")


@dataclass(frozen=True)
class PublicModel:
    """Published weights of one network that `refine convert` supports.

    Attributes:
        url: address of the file, whose name contains the first digits of its SHA-256.
        network: name of the network.
        knows: data set and number of classes.
        published: quality on COCO val2017 in percent, as published by its authors.
        megabytes: size of its float32 tensors in MB.
        licence: licence of the weights.
    """

    url: str
    network: str
    knows: str
    published: str
    megabytes: int
    licence: str

    @property
    def file(self) -> str:
        """Return the name of the file."""
        return self.url.rpartition("/")[2]

    @property
    def digest(self) -> str:
        """Return the first digits of the file's SHA-256."""
        return published_digest(self.url)

    def card(self) -> str:
        """Return a model card in Markdown for the folder of converted weights."""
        return (
            f"# {self.network}\n\nConverted by `refine` from {self.url}.\n\n- Classes: {self.knows}\n"
            f"- Published quality on COCO val2017, in percent: {self.published}\n- Licence of the weights: "
            f"{self.licence}\n"
        )


def published_digest(url: str) -> str:
    """Return the SHA-256 digits in a file name of detectron2 or torchvision, or "" if it has none."""
    match = _DIGEST.search(url)
    return match[1] if match else ""


_ZOO = ("COCO: 80 things, 53 stuff", "CC BY-SA 3.0")
_THINGS = ("COCO: 80 things, no stuff", "same as torchvision")

PUBLIC = {
    "coco-panoptic-fpn-r50": PublicModel(
        f"{_DETECTRON2}/COCO-PanopticSegmentation/panoptic_fpn_R_50_3x/139514569/model_final_c10459.pkl",
        "Panoptic-FPN, ResNet-50",
        _ZOO[0],
        "PQ 41.5",
        184,
        _ZOO[1],
    ),
    "coco-panoptic-fpn-r101": PublicModel(
        f"{_DETECTRON2}/COCO-PanopticSegmentation/panoptic_fpn_R_101_3x/139514519/model_final_cafdb1.pkl",
        "Panoptic-FPN, ResNet-101",
        _ZOO[0],
        "PQ 43.0",
        260,
        _ZOO[1],
    ),
    "coco-panoptic-fpn-r101-dcn-cascade": PublicModel(
        f"{_DETECTRON2}/Misc/panoptic_fpn_R_101_dconv_cascade_gn_3x/139797668/model_final_be35db.pkl",
        "Cascade Panoptic-FPN, ResNet-101 with deformable convolutions and GroupNorm",
        _ZOO[0],
        "PQ 46.1",
        376,
        _ZOO[1],
    ),
    "coco-maskrcnn-r50": PublicModel(
        f"{_TORCHVISION}/maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth",
        "Mask R-CNN, ResNet-50",
        _THINGS[0],
        "mask AP 34.6",
        178,
        _THINGS[1],
    ),
    "coco-maskrcnn-r50-v2": PublicModel(
        f"{_TORCHVISION}/maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth",
        "Mask R-CNN v2, ResNet-50",
        _THINGS[0],
        "mask AP 41.8",
        186,
        _THINGS[1],
    ),
}
"""Public weights by the name that `--checkpoint` accepts."""
