"""H_ins and the refining H̃_ins: the mask of each instance inside its box."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from refine.modeling.config import MaskHeadConfig
from refine.modeling.norms import conv_norm, make_norm
from refine.ops.distributed import mean_over_processes

# Shape suffixes: N boxes, C feature channels, L semantic classes, K thing classes, S bins (14), M = 2S.


class MaskHead(nn.Module):
    """Convolutions, a deconvolution and one mask per class, of which the box's class is taken.

    With `num_semantic` > 0 it is H̃_ins of equation 4, whose input is [f_ins + f_sem; p_sem]; the first
    convolution is written as the sum over both parts, which is the same function, so that the part over
    the features is computed once where heads are shared over iterations. With 0 it is H_ins of equation 1.

    Args:
        config: widths and norm.
        in_channels: C.
        num_classes: K.
        num_semantic: L, channels of p_sem; 0 for none.
        balanced: f_sem has a convolution of its own, if `num_f_sem` > 0, and this one and that over p_sem start at
            zero.
        num_f_sem: C where f_sem is not part of the features; 0 for none.
        flow: it also takes the features of another head like itself.
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
        self.predictor = nn.Conv2d(width, num_classes, 1)
        nn.init.normal_(self.predictor.weight, std=0.001)
        nn.init.zeros_(self.predictor.bias)  # type: ignore[arg-type]

    def project(self, features: Tensor, f_sem: Tensor | None = None) -> Tensor:
        """First convolution over the features: Tensor[N, C, S, S] each -> Tensor[N, width, S, S]."""
        x = self.from_features(features)
        return x if f_sem is None or self.from_f_sem is None else x + self.from_f_sem(f_sem)

    def forward(
        self, projected: Tensor, labels: Tensor, p_sem: Tensor | None = None, before: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mask logits of each box for its own class.

        Args:
            projected: what `project` gives, Tensor[N, width, S, S].
            labels: Tensor[N] int64, 0..K-1.
            p_sem: Tensor[N, L, S, S], semantic predictions inside the box, if the head takes them.
            before: Tensor[N, width, S, S], features of the head of the iteration before, if there is one.

        Returns:
            Mask logits Tensor[N, M, M], and the features Tensor[N, width, S, S] that they are made of.
        """
        x = projected
        if self.from_before is not None and before is not None:
            x = x + self.from_before(before)
        if self.from_semantic is not None:
            assert p_sem is not None
            x = x + self.from_semantic(p_sem)
        features = self.convs(F.relu(self.norm(x)))
        x = F.relu(self.deconv(features), inplace=True)  # N×width×S×S -> N×width×M×M
        # The 1×1 convolution for one class per box: a vector-matrix product each.
        weight = self.predictor.weight[labels, :, 0, 0].to(x.dtype)  # N×width
        bias = self.predictor.bias[labels].to(x.dtype)  # type: ignore[index]
        logits = torch.bmm(weight[:, None], x.flatten(2))[:, 0] + bias[:, None]  # N×M²
        return logits.unflatten(1, x.shape[2:]), features


def mask_targets(masks: Sequence[Tensor], boxes: Sequence[Tensor], matched: Sequence[Tensor], size: int) -> Tensor:
    """Ground-truth masks cropped to boxes.

    Args:
        masks: Tensor[G, H, W] bool per image.
        boxes: Tensor[n, 4] per image, in its pixels.
        matched: Tensor[n] int64 per image, which of the G masks each box shows.
        size: M.

    Returns:
        Tensor[N, M, M] float, 0 or 1: ROI-Aligned at .5, as detectron2 crops bit masks.
    """
    crops = [
        roi_align(m[:, None].float(), torch.cat([i[:, None].to(b), b], 1), size, 1.0, 0, aligned=True)[:, 0]
        for m, b, i in zip(masks, boxes, matched, strict=True)
    ]
    return (torch.cat(crops) >= 0.5).float()


def mask_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy, mean over positives and pixels: Tensor[N, M, M] both; 0 with a graph if N = 0."""
    total = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="sum")
    count = mean_over_processes(torch.tensor(float(len(targets)), device=targets.device))
    return total / (count * targets.shape[-1] ** 2)
