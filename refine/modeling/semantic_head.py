"""Semantic heads H_sem and refining H̃_sem: semantic features and logits at stride 4."""

from __future__ import annotations

from collections.abc import Sequence
from math import log2

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refine.modeling.config import IBPPConfig, SemanticHeadConfig
from refine.modeling.norms import by_image, conv_norm, make_norm
from refine.modeling.per_class import PerClassConv2d
from refine.ops.distributed import mean_over_processes
from refine.structures import VOID

# Shape suffixes: B images, C feature channels, K thing classes, L all classes, h and w at stride 4.


class SemanticHead(nn.Module):
    """Semantic branch of Panoptic-FPN: P2..P5 → F_sem → P_sem^(0) (equation 1).

    Each level has max(1, log2(stride / 4)) blocks of {3×3 conv, norm, ReLU, bilinear ×2 above stride 4}; the levels
    are summed.

    Args:
        config: widths and norm.
        in_channels: number of FPN channels.
        num_outputs: number L of classes, or 1 + stuff classes for `classes="stuff"`.
        strides: strides of the levels.
    """

    def __init__(
        self,
        config: SemanticHeadConfig,
        in_channels: int,
        num_outputs: int,
        strides: Sequence[int] = (4, 8, 16, 32),
    ) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.ModuleList(
                conv_norm(in_channels if n == 0 else config.channels, config.channels, norm=config.norm)
                for n in range(max(1, int(log2(stride // 4))))
            )
            for stride in strides
        )
        self.predictor = nn.Conv2d(config.channels, num_outputs, 1)
        nn.init.normal_(self.predictor.weight, std=0.01)
        nn.init.zeros_(self.predictor.bias)  # type: ignore[arg-type]

    def features(self, pyramid: Sequence[Tensor]) -> Tensor:
        """Compute F_sem, Tensor[B, C, h, w] at stride 4, from maps Tensor[B, C_fpn, h_l, w_l], finest first."""
        total: Tensor | None = None
        for n, (level, x) in enumerate(zip(self.levels, pyramid, strict=True)):
            for block in level:  # type: ignore[attr-defined]
                x = block(x)
                if n > 0:
                    x = by_image(x, _twice)
            total = x if total is None else total + x
        assert total is not None
        return total

    def forward(self, features: Tensor) -> Tensor:
        """Compute the logits P_sem^(0), Tensor[B, L, h, w], from F_sem, Tensor[B, C, h, w]."""
        return self.predictor(features)


def _twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class RefiningSemanticHead(nn.Module):
    """Refining semantic head H̃_sem: canvas and F_sem → P_sem^(t) (equation 6).

    The first convolution over [A; F_sem] is written as the sum of one over A and one over F_sem, which is the same
    function: the part over F_sem is reused if iterations share the head, and the part over A is computed only for
    the classes that are present.

    Args:
        config: widths.
        norm: norm of the convolutions.
        num_things: number K of thing classes, the channels of the canvas.
        in_channels: number C of channels of F_sem.
        num_outputs: number L of classes.
    """

    def __init__(self, config: IBPPConfig, norm, num_things: int, in_channels: int, num_outputs: int) -> None:
        super().__init__()
        width = config.sem_channels
        self.balanced = config.exchange == "balanced"  # the canvas is added after the norm of F_sem
        self.from_canvas: nn.Conv2d | None = None
        if "canvas" in config.routes:
            self.from_canvas = PerClassConv2d(num_things, width, 3, padding=1, bias=False)
        self.from_features = nn.Conv2d(in_channels, width, 3, padding=1, bias=norm == "none")
        for part in (self.from_canvas, self.from_features):  # fan-out of the joint convolution
            if part is not None and part.weight.numel():
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        self.norm = make_norm(norm, width)
        self.convs = nn.Sequential(*(conv_norm(width, width, norm=norm) for _ in range(config.sem_convs - 1)))
        self.predictor = nn.Conv2d(width, num_outputs, 1)
        nn.init.normal_(self.predictor.weight, std=0.0 if config.residual else 0.01)
        nn.init.zeros_(self.predictor.bias)  # type: ignore[arg-type]

    def forward(self, canvas: Tensor | None, projected: Tensor, present: Tensor | None = None) -> Tensor:
        """Compute the features from which `predictor` computes P_sem^(t).

        Args:
            canvas: canvas A, Tensor[B, K, h, w] or only the channels in `present`; None for a head without canvas.
            projected: `from_features(F_sem)`, Tensor[B, width, h, w].
            present: thing classes of the channels of `canvas`, Tensor[k] int64; None for all K.

        Returns:
            Tensor[B, width, h, w].
        """
        painted: Tensor | float = 0.0
        if self.from_canvas is not None and canvas is not None:
            weight = self.from_canvas.weight if present is None else self.from_canvas.weight[:, present]
            if projected.is_contiguous(memory_format=torch.channels_last):
                weight = weight.clone(memory_format=torch.channels_last)  # then `painted` has this layout, too
            if weight.shape[1]:
                painted = F.conv2d(canvas, weight, padding=1)
        x = self.norm(projected) + painted if self.balanced else self.norm(projected + painted)
        return self.convs(F.relu(x))


def semantic_loss(logits: Tensor, sem_seg: Tensor, full_size: bool, first_stuff: int | None = None) -> Tensor:
    """Return the cross-entropy averaged over the labelled pixels of all images.

    The loss of a pixel of unnamed stuff, whose stuff class is unknown, is -log of the sum of all stuff
    probabilities.

    Args:
        logits: Tensor[B, L, h, w] at stride 4.
        sem_seg: channel of each pixel, Tensor[B, 4h, 4w] int64; `VOID` where unlabelled or padded, L for unnamed
            stuff.
        full_size: whether to compare at full size (logits ×4, bilinear); else at stride 4 with the label at the
            centre of each cell, which needs a sixteenth of the memory.
        first_stuff: first stuff channel, after which all are stuff; None if there is no unnamed stuff.
    """
    if full_size:
        logits = F.interpolate(logits, scale_factor=4.0, mode="bilinear", align_corners=False)
    else:
        sem_seg = sem_seg[:, 2::4, 2::4]
    count = mean_over_processes((sem_seg != VOID).sum())
    unnamed = sem_seg == logits.shape[1]
    total = F.cross_entropy(logits.float(), sem_seg.masked_fill(unnamed, VOID), ignore_index=VOID, reduction="sum")
    if first_stuff is not None:
        of_unnamed = logits.float().movedim(1, -1)[unnamed]  # n×L
        total = total + (of_unnamed.logsumexp(1) - of_unnamed[:, first_stuff:].logsumexp(1)).sum()
    return total / count


def pad_labels(labels: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Pad label maps to `size` with `VOID` at the right and the bottom, and stack them: Tensor[B, H, W] int64."""
    height, width = size
    return torch.stack([F.pad(x, (0, width - x.shape[1], 0, height - x.shape[0]), value=VOID) for x in labels])
