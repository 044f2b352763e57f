"""Layers of a network in a form that `torch.export` traces for every image size.

Heights and widths are symbols, of which `torch.export` must see that they are equal where maps are added. Maps at
stride s therefore have exactly 1/s of the padded image: strided convolutions and poolings pad explicitly, and norms
are affine maps or see the padded size alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torchvision.ops import deform_conv2d

from refine.errors import RefineError
from refine.modeling.deform import DeformableConv
from refine.modeling.model import PanopticModel
from refine.modeling.norms import ImageGroupNorm

STRIDES = (2, 4, 8, 16, 32)


class Frame:
    """Sizes of the image being traced; one object is shared by all layers of a network.

    Attributes:
        rows, columns: height and width of the padded image in units of 32 pixels.
        valid: (height, width) of the unpadded image at each of `STRIDES`, rounded up.
    """

    rows: int
    columns: int
    valid: dict[int, tuple[int, int]]

    def set(self, size: Tensor) -> None:
        """Set the sizes from the (height, width) of the unpadded image in pixels, Tensor[2] int64."""
        blocks = torch.div(size + 31, 32, rounding_mode="floor")
        self.rows, self.columns = (_symbol(blocks[n], 1) for n in (0, 1))
        self.valid = {}
        for stride in STRIDES:
            cells = torch.div(size + (stride - 1), stride, rounding_mode="floor")
            height, width = (_symbol(cells[n], 1) for n in (0, 1))
            torch._check(height <= 32 // stride * self.rows)
            torch._check(width <= 32 // stride * self.columns)
            self.valid[stride] = height, width

    def size(self, stride: int) -> tuple[int, int]:
        """Return (height, width) of the padded map at a stride."""
        return 32 // stride * self.rows, 32 // stride * self.columns

    def within(self, x: Tensor, op: Callable[[Tensor], Tensor], scale: int = 1) -> Tensor:
        """Apply `op`, which multiplies the size by `scale`, to the unpadded part of a map; padding becomes zero."""
        stride = next(s for s in STRIDES if statically_known_true(x.shape[2] == self.size(s)[0]))
        (height, width), (rows, columns) = self.valid[stride], self.size(stride)
        y = op(x[:, :, :height, :width])
        return F.pad(y, (0, scale * (columns - width), 0, scale * (rows - height)))


def _symbol(value: Tensor, least: int) -> int:
    symbol: int = value.item()  # type: ignore[assignment]
    torch._check(symbol >= least)
    return symbol


class Affine(nn.Module):
    """BatchNorm with fixed statistics, followed by the layers that timm puts inside it."""

    gain: Tensor
    offset: Tensor

    def __init__(self, norm: Any, further: list[nn.Module]) -> None:
        super().__init__()
        mean, variance, eps = norm.running_mean, norm.running_var, norm.eps
        gain = torch.rsqrt(variance + eps)
        if norm.weight is not None:
            gain = gain * norm.weight
        offset = -mean * gain if norm.bias is None else norm.bias - mean * gain
        self.register_buffer("gain", gain.detach()[:, None, None])
        self.register_buffer("offset", offset.detach()[:, None, None])
        self.further = nn.Sequential(*further)

    def forward(self, x: Tensor) -> Tensor:
        return self.further(x * self.gain + self.offset)


class StridedConv(nn.Module):
    """Strided convolution of a map whose height and width are multiples of the stride."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        kernel, stride = conv.kernel_size[0], conv.stride[0]
        if conv.kernel_size[1] != kernel or conv.stride[1] != stride or conv.dilation != (1, 1):
            raise RefineError(f"the convolution {conv} cannot be exported; use another backbone")
        same = type(conv).__name__ == "Conv2dSame"  # of timm, with TensorFlow's padding
        before = (kernel - stride) // 2 if same else int(conv.padding[0])
        self.padding = [before, kernel - stride - before] * 2

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        return F.conv2d(F.pad(x, self.padding), conv.weight, conv.bias, conv.stride, 0, 1, conv.groups)


class StridedPool(nn.Module):
    """Strided maximum pooling of a map whose height and width are multiples of the stride."""

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        self.kernel, self.stride, before = (cast(int, n) for n in (pool.kernel_size, pool.stride, pool.padding))
        self.padding = [before, self.kernel - self.stride - before] * 2

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.pad(x, self.padding, value=-torch.inf), self.kernel, self.stride)


class PlainDeformableConv(nn.Module):
    """Deformable convolution by torchvision's operator, which becomes ONNX's DeformConv (opset 19)."""

    def __init__(self, conv: DeformableConv) -> None:
        super().__init__()
        self.weight, self.modulated, self.stride = conv.weight, conv.modulated, conv.stride[0]
        self.offset = StridedConv(conv.offset)
        self.padding = self.offset.padding  # zeros, as everything outside the map

    def forward(self, x: Tensor) -> Tensor:
        prediction = self.offset(x)
        mask = torch.sigmoid(prediction[:, 18:]) if self.modulated else None
        return deform_conv2d(F.pad(x, self.padding), prediction[:, :18], self.weight, stride=self.stride, mask=mask)


class PlainGroupNorm(nn.Module):
    """GroupNorm that does not ask whether a map has a single pixel, which only the image decides.

    Args:
        norm: norm that is replaced.
        frame: sizes of the image, of whose padding the statistics are free; None for maps of boxes.
    """

    def __init__(self, norm: nn.GroupNorm, frame: Frame | None) -> None:
        super().__init__()
        self.norm, self.frame = norm, frame

    def forward(self, x: Tensor) -> Tensor:
        return self.normalised(x) if self.frame is None else self.frame.within(x, self.normalised)

    def normalised(self, x: Tensor) -> Tensor:
        norm = self.norm
        return torch.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)


def exportable(model: PanopticModel, frame: Frame) -> PanopticModel:
    """Return a copy of a model whose layers can be traced for every image size.

    Raises:
        RefineError: a layer cannot be exported.
    """
    if model.config.divisor % 32:
        raise RefineError(f"model.divisor is {model.config.divisor}: export needs a multiple of 32")
    model = copy.deepcopy(model).eval().requires_grad_(False).to(memory_format=torch.contiguous_format)
    _replace(model, frame)
    return model


def _replace(parent: nn.Module, frame: Frame) -> None:
    """Replace layers below `parent` in place, but not those of the occlusion head, whose maps have a fixed size."""
    for name, child in list(parent.named_children()):
        if name == "occlusion":
            continue
        if (new := _replacement(child, frame)) is child:
            _replace(child, frame)
        else:
            setattr(parent, name, new)


def _replacement(layer: nn.Module, frame: Frame) -> nn.Module:
    if isinstance(getattr(layer, "running_mean", None), Tensor):
        return Affine(layer, [getattr(layer, name) for name in ("drop", "act") if hasattr(layer, name)])
    match layer:
        case DeformableConv():
            return PlainDeformableConv(layer)
        case nn.Conv2d() if layer.stride[0] > 1:
            return StridedConv(layer)
        case nn.MaxPool2d():
            return StridedPool(layer)
        case ImageGroupNorm():
            return PlainGroupNorm(layer, frame)
        case nn.GroupNorm():
            return PlainGroupNorm(layer, None)
        case _:
            return layer
