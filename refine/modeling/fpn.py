"""Feature pyramid P2..P6."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

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
        inner, layer = nn.ModuleList(), nn.ModuleList()
        for channels in in_channels:
            inner.append(_conv(channels, out_channels, 1, norm))
            layer.append(_conv(out_channels, out_channels, 3, norm))
        self.levels = nn.ModuleDict({"inner_blocks": inner, "layer_blocks": layer})
        for module in self.levels.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)  # Xavier's, for the same number of inputs and outputs
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Compute P2..P6, Tensor[B, out_channels, H / s, W / s], from maps Tensor[B, C_l, H / s, W / s], s = 4..32.

        Heights and widths need not be multiples of 32: each level has the size of its backbone map.
        """
        inner, layer = self.levels["inner_blocks"], self.levels["layer_blocks"]
        assert isinstance(inner, nn.ModuleList)
        assert isinstance(layer, nn.ModuleList)
        laterals = [block(feature) for block, feature in zip(inner, features, strict=True)]
        sums = [laterals[-1]]
        for lateral in laterals[-2::-1]:
            sums.insert(0, lateral + F.interpolate(sums[0], lateral.shape[-2:], mode="nearest"))
        outputs = [block(x) for block, x in zip(layer, sums, strict=True)]
        return [*outputs, F.max_pool2d(outputs[-1], 1, stride=2)]


def _conv(in_channels: int, out_channels: int, kernel: int, norm: Norm) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=norm == "none")
    return nn.Sequential(conv) if norm == "none" else nn.Sequential(conv, make_norm(norm, out_channels))
