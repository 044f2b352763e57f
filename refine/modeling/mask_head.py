"""Mask heads H_ins and refining H̃_ins: the mask of each instance inside its box."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refine.modeling.config import MaskHeadConfig
from refine.modeling.norms import conv_norm, make_norm
from refine.modeling.per_class import PerClassConv2d
from refine.ops.distributed import mean_over_processes
from refine.ops.vision import roi_align

EPSILON = 1e-4
"""Probabilities are limited to EPSILON .. 1 - EPSILON before they become logits."""

# Shape suffixes: N boxes, C feature channels, L semantic classes, K thing classes, S bins (14), M = 2S.


class MaskHead(nn.Module):
    """Mask head: convolutions, a deconvolution and one mask per class, of which the box's class is returned.

    With `num_semantic` > 0 it is H̃_ins of equation 4 with the input [f_ins + f_sem; p_sem]. The first convolution
    is written as the sum of two over its parts, which is the same function, so that the part over the features is
    computed once if iterations share the head. With `num_semantic` = 0 it is H_ins of equation 1.

    Args:
        config: widths and norm.
        in_channels: number C of feature channels.
        num_classes: number K of thing classes.
        num_semantic: number L of channels of p_sem; 0 for none.
        balanced: whether the convolutions over p_sem, f_sem and the previous features start at zero.
        num_f_sem: number of channels of f_sem if it is a separate input; 0 if it is part of the features.
        flow: whether the head also takes features of the previous iteration's head.
    """

    def __init__(
        self,
        config: MaskHeadConfig,
        in_channels: int,
        num_classes: int,
        num_semantic: int = 0,
        balanced: bool = False,
        num_f_sem: int = 0,
        flow: bool = False,
    ) -> None:
        super().__init__()
        width = config.channels
        self.from_features = nn.Conv2d(in_channels, width, 3, padding=1, bias=config.norm == "none")
        nn.init.kaiming_normal_(self.from_features.weight, mode="fan_out", nonlinearity="relu")
        self.from_semantic: nn.Conv2d | None = None
        if num_semantic:
            self.from_semantic = nn.Conv2d(num_semantic, width, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(self.from_semantic.weight, mode="fan_out", nonlinearity="relu")
        self.from_f_sem: nn.Conv2d | None = None
        if num_f_sem:
            self.from_f_sem = nn.Conv2d(num_f_sem, width, 3, padding=1, bias=False)
        self.from_before = nn.Conv2d(width, width, 1, bias=False) if flow else None
        if balanced:
            for part in (self.from_semantic, self.from_f_sem, self.from_before):
                if part is not None:
                    nn.init.zeros_(part.weight)
        self.norm = make_norm(config.norm, width, of_boxes=True)
        self.convs = nn.Sequential(
            *(conv_norm(width, width, norm=config.norm, of_boxes=True) for _ in range(config.num_convs - 1))
        )
        self.deconv = nn.ConvTranspose2d(width, width, 2, stride=2)
        nn.init.kaiming_normal_(self.deconv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.deconv.bias)  # type: ignore[arg-type]
        self.predictor = PerClassConv2d(width, num_classes, 1)
        nn.init.normal_(self.predictor.weight, std=0.001)
        nn.init.zeros_(self.predictor.bias)  # type: ignore[arg-type]

    def project(self, features: Tensor, f_sem: Tensor | None = None) -> Tensor:
        """Apply the first convolution to the features, Tensor[N, channels, S, S] each: Tensor[N, width, S, S]."""
        x = self.from_features(features)
        return x if f_sem is None or self.from_f_sem is None else x + self.from_f_sem(f_sem)

    def forward(
        self, projected: Tensor, labels: Tensor, p_sem: Tensor | None = None, before: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute the mask logits of each box for its class.

        Args:
            projected: result of `project`, Tensor[N, width, S, S].
            labels: thing class of each box, Tensor[N] int64, 0..K-1.
            p_sem: semantic predictions inside the boxes, Tensor[N, L, S, S], if the head takes them.
            before: features of the previous iteration's head, Tensor[N, width, S, S], or None.

        Returns:
            Mask logits, Tensor[N, M, M], and the features from which they are computed, Tensor[N, width, S, S].
        """
        x = projected
        if self.from_before is not None and before is not None:
            x = x + self.from_before(before)
        if self.from_semantic is not None:
            assert p_sem is not None
            x = x + self.from_semantic(p_sem)
        features = self.convs(F.relu(self.norm(x)))
        x = F.relu(self.deconv(features), inplace=True)  # N×width×S×S -> N×width×M×M
        # 1×1 convolution for a single class per box, as vector-matrix products.
        weight = self.predictor.weight[labels, :, 0, 0].to(x.dtype)  # N×width
        bias = self.predictor.bias[labels].to(x.dtype)  # type: ignore[index]
        logits = torch.bmm(weight[:, None], x.flatten(2))[:, 0] + bias[:, None]  # N×M²
        return logits.unflatten(1, x.shape[2:]), features


def add_semantics(masks: Tensor, probabilities: Tensor, labels: Tensor, weight: float) -> Tensor:
    """Add the semantic evidence for the class of each box to its mask logits.

    UPSNet's panoptic head adds both logits as well (Xiong et al. 2019). Here a probability of 1/L, that of chance,
    changes nothing.

    Args:
        masks: mask probabilities, Tensor[N, M, M], 0-1.
        probabilities: probabilities of the L classes of P_sem in the bins of each box, Tensor[N, L, M, M], 0-1.
        labels: thing class of each box, Tensor[N] int64, 0..L-1.
        weight: factor of the semantic logits.

    Returns:
        Mask probabilities, Tensor[N, M, M].
    """
    own = probabilities.gather(1, labels[:, None, None, None].expand(-1, 1, *masks.shape[1:]))[:, 0]
    evidence = torch.logit(own.float(), EPSILON) + math.log(probabilities.shape[1] - 1)
    return torch.sigmoid(torch.logit(masks.float(), EPSILON) + weight * evidence)


def mask_targets(masks: Sequence[Tensor], boxes: Sequence[Tensor], matched: Sequence[Tensor], size: int) -> Tensor:
    """Crop ground-truth masks to boxes.

    Args:
        masks: ground-truth masks, Tensor[G, H, W] bool per image.
        boxes: boxes in pixels, Tensor[n, 4] per image.
        matched: index of the mask of each box, Tensor[n] int64 per image.
        size: side M of the crops.

    Returns:
        Tensor[N, M, M] float, 0 or 1: ROI-Aligned and thresholded at .5, as detectron2 crops bit masks.
    """
    crops = [
        roi_align(m[:, None].float(), torch.cat([i[:, None].to(b), b], 1), size, 1.0, 0, True)[:, 0]
        for m, b, i in zip(masks, boxes, matched, strict=True)
    ]
    return (torch.cat(crops) >= 0.5).float()


def mask_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean binary cross-entropy of logits and targets, both Tensor[N, M, M]; 0 with a graph if N = 0."""
    total = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="sum")
    count = mean_over_processes(torch.tensor(float(len(targets)), device=targets.device))
    return total / (count * targets.shape[-1] ** 2)
