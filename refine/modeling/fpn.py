"""Feature pyramid P2..P6."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from refine.modeling.config import Norm
from refine.modeling.norms import make_norm


class FPN(nn.Module):
    """Feature Pyramid Network (Lin et al. 2017): lateral 1×1, nearest top-down, 3×3 output, no activations.

    P6 is every second pixel of P5. Initialisation is Xavier uniform, as in detectron2 and torchvision.

    Args:
        in_channels: numbers of channels of the backbone's maps at strides 4, 8, 16 and 32.
        out_channels: number of channels of every level.
        norm: norm after each convolution; convolutions have a bias only without a norm.
    """

    strides = (4, 8, 16, 32, 64)

    def __init__(self, in_channels: Sequence[int], out_channels: int, norm: Norm) -> None:
        super().__init__()
        self.levels = FeaturePyramidNetwork(
            list(in_channels),
            out_channels,
            LastLevelMaxPool(),
            norm_layer=None if norm == "none" else partial(make_norm, norm),
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Compute P2..P6, Tensor[B, out_channels, H / s, W / s], from maps Tensor[B, C_l, H / s, W / s], s = 4..32.

        Heights and widths need not be multiples of 32: each level has the size of its backbone map.
        """
        named = {str(n): feature for n, feature in enumerate(features)}
        return list(self.levels(named).values())
