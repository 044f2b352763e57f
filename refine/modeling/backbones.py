"""Feature extractors with outputs at strides 4, 8, 16 and 32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refine.bounds import check_bounds
from refine.errors import RefineError
from refine.modeling.blocks import BasicBlock, Bottleneck
from refine.modeling.config import BackboneConfig
from refine.modeling.deform import DeformableConv
from refine.modeling.efficientnet import EPSILON, LITES, EfficientNetLite
from refine.modeling.norms import make_norm

# Block type, number of blocks in res2..res5, groups of the 3×3 convolutions, channels per group in res2.
RESNETS: dict[str, tuple[type[BasicBlock | Bottleneck], tuple[int, int, int, int], int, int]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2), 1, 64),
    "resnet34": (BasicBlock, (3, 4, 6, 3), 1, 64),
    "resnet50": (Bottleneck, (3, 4, 6, 3), 1, 64),
    "resnet101": (Bottleneck, (3, 4, 23, 3), 1, 64),
    "resnext101_32x8d": (Bottleneck, (3, 4, 23, 3), 32, 8),
    "resnext101_64x4d": (Bottleneck, (3, 4, 23, 3), 64, 4),
}


class Backbone(nn.Module):
    """Base class of networks from normalised Tensor[B, 3, H, W] to four maps, Tensor[B, channels[n], H / s, W / s].

    Attributes:
        channels: numbers of channels of the four maps.
        strides: strides s of the four maps.
        frozen: names of frozen submodules, whose norms stay in evaluation mode.
    """

    strides = (4, 8, 16, 32)

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.channels = list(channels)
        self.frozen: list[str] = []

    def freeze(self, names: Sequence[str]) -> None:
        """Freeze submodules by name."""
        self.frozen = list(names)
        for name in names:
            self.get_submodule(name).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        return self


class ResNet(Backbone):
    """ResNet or ResNeXt with torchvision's blocks and parameter names, and the options of `BackboneConfig`.

    Args:
        config: config with a name in `RESNETS`. ResNets 18 and 34, whose blocks have no expansion, output a quarter
            of `res2_channels`.

    Raises:
        RefineError: the architecture does not support an option.
    """

    def __init__(self, config: BackboneConfig) -> None:
        block, depths, groups, width = RESNETS[config.name]
        planes = [config.res2_channels // 4 * 2**n for n in range(4)]
        super().__init__([p * block.expansion for p in planes])
        if config.stride_in_1x1 and block is not Bottleneck:
            raise RefineError(f"backbone.stride_in_1x1: {config.name} has no 1×1 convolutions; set it to false")
        norm = partial(make_norm, config.norm, eps=config.norm_eps)
        make: Callable[..., nn.Module] = block
        if block is Bottleneck:
            # torchvision counts the width of a 3×3 convolution in 64ths of `planes` per group.
            make = partial(block, groups=groups, base_width=(config.width_per_group or width) * 64 // planes[0])

        self.conv1 = nn.Conv2d(3, config.stem_width, 7, stride=2, padding=3, bias=config.norm == "none")
        self.bn1 = norm(config.stem_width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        in_channels = config.stem_width
        for n, depth in enumerate(depths):
            blocks = []
            for i in range(depth):
                stride = 2 if i == 0 and n > 0 else 1
                shortcut = None
                if i == 0 and (stride > 1 or in_channels != self.channels[n]):
                    conv = Shortcut(in_channels, self.channels[n], 1, stride, bias=False)
                    shortcut = nn.Sequential(conv, norm(self.channels[n]))
                blocks.append(make(in_channels, planes[n], stride, shortcut, norm))
                in_channels = self.channels[n]
            self.add_module(f"layer{n + 1}", nn.Sequential(*blocks))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if config.stride_in_1x1:
            _stride_in_1x1(self)
        for stage in config.deform_stages:
            _make_deformable(self.get_submodule(f"layer{stage - 1}"), config.modulated)
        stages = [["conv1", "bn1"], ["layer1"], ["layer2"], ["layer3"], ["layer4"]]
        self.freeze([name for stage in stages[: config.frozen_stages] for name in stage])

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        outputs = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)  # type: ignore[operator]
            outputs.append(x)
        return outputs


class Shortcut(nn.Conv2d):
    """Strided 1×1 convolution that subsamples its input first if it has few channels.

    This avoids a bug: oneDNN in torch 2.15 writes out of bounds in the backward pass of a strided 1×1 convolution
    with fewer than 16 input channels in `channels_last`, with two or more threads.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.in_channels >= 16:
            return super().forward(x)
        down, right = self.stride
        return F.conv2d(x[..., ::down, ::right], self.weight, self.bias)


def _stride_in_1x1(network: nn.Module) -> None:
    """Move the stride of each bottleneck from its 3×3 to its first 1×1 convolution."""
    for block in network.modules():
        if isinstance(block, Bottleneck):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)


def _make_deformable(stage: nn.Module, modulated: bool) -> None:
    """Replace the last 3×3 convolution of each block by a deformable one."""
    for block in stage.children():
        conv = block.conv2
        assert isinstance(conv, nn.Conv2d)
        block.conv2 = DeformableConv(conv.in_channels, conv.out_channels, conv.stride[0], conv.groups, modulated)


class LiteBackbone(Backbone):
    """EfficientNet-Lite; the norms "frozen_bn" and "sync_bn" apply, others stand for BatchNorm, as in timm models.

    Args:
        config: config with a name `timm/NAME`, NAME being one of `LITES`; widths and `deform_stages` do not apply.

    Raises:
        RefineError: the config has options of a ResNet.
    """

    def __init__(self, config: BackboneConfig) -> None:
        _check_options(config)
        norm = config.norm if config.norm in ("frozen_bn", "sync_bn") else "bn"
        body = EfficientNetLite(config.name.removeprefix("timm/"), partial(make_norm, norm, eps=EPSILON))
        super().__init__(body.channels)
        self.body = body
        self.freeze([f"body.{name}" for name in body.modules_until(config.frozen_stages)])

    def forward(self, x: Tensor) -> list[Tensor]:
        features: list[Tensor] = self.body(x)
        return features


class TimmBackbone(Backbone):
    """Convolutional timm model with `features_only`.

    Args:
        config: config with a name `timm/NAME`; the norm "frozen_bn" freezes the statistics of BatchNorms, "sync_bn"
            synchronises them, other values keep the model's norms. Widths and `deform_stages` do not apply.

    Raises:
        RefineError: timm has no such model, or the model does not return maps at strides 4, 8, 16 and 32 for all
            image sizes.
    """

    def __init__(self, config: BackboneConfig) -> None:
        import timm  # slow to import, and few models need it
        from timm.layers import convert_sync_batchnorm, freeze_batch_norm_2d

        name = config.name.removeprefix("timm/")
        if not timm.is_model(name):
            raise RefineError(f"backbone.name: timm has no model {name!r}; see timm.list_models()")
        _check_options(config)
        try:
            body: Any = timm.create_model(name, features_only=True)
        except (RuntimeError, AttributeError) as error:
            raise RefineError(f"backbone.name: {config.name} returns no feature maps ({error})") from error
        levels = body.feature_info.get_dicts()
        reductions = [level["reduction"] for level in levels]
        if not set(self.strides) <= set(reductions):
            raise RefineError(f"backbone.name: {config.name} has strides {reductions}, expected 4, 8, 16 and 32")
        # Of two maps with the same stride, the later one is deeper.
        outputs = [len(reductions) - 1 - reductions[::-1].index(s) for s in self.strides]
        super().__init__([levels[n]["num_chs"] for n in outputs])
        if config.norm == "frozen_bn":
            body = freeze_batch_norm_2d(body)
        elif config.norm == "sync_bn":
            body = convert_sync_batchnorm(body)
        self.body = body
        self.outputs = outputs
        self._try(config.name)
        if config.frozen_stages:
            stride = 2**config.frozen_stages
            ends = [level["module"] for level in levels if level["reduction"] <= stride]
            names = _modules_until(body, ends[-1]) if ends else []
            if not names:
                raise RefineError(
                    f"backbone.frozen_stages: {config.name} has no module that ends at stride {stride}; set it to 0"
                )
            self.freeze([f"body.{name}" for name in names])

    @torch.no_grad()
    def _try(self, name: str) -> None:
        """Raise RefineError if the model needs a fixed image size, or its maps are not [B, C, H, W]."""
        self.body.eval()
        try:
            shapes = [tuple(f.shape[1:]) for f in self(torch.zeros(1, 3, 64, 96))]
        except (AssertionError, RuntimeError) as error:
            raise RefineError(f"backbone.name: {name} does not support all image sizes ({error})") from error
        expected = [(c, 64 // s, 96 // s) for c, s in zip(self.channels, self.strides, strict=True)]
        if shapes != expected:
            raise RefineError(f"backbone.name: {name} returns maps of shapes {shapes}, expected {expected}")
        self.body.train()

    def forward(self, x: Tensor) -> list[Tensor]:
        features = self.body(x)
        return [features[n] for n in self.outputs]


def _modules_until(network: nn.Module, end: str) -> list[str]:
    """Return the names of the largest submodules that end no later than the submodule `end`, in order."""
    end = end.replace(".", "_")  # some of timm's extractors flatten "stages.0" to "stages_0"
    names = [name for name, _ in network.named_modules() if name]
    inside = [n for n, name in enumerate(names) if f"{name.replace('.', '_')}_".startswith(f"{end}_")]
    if not inside:
        return []
    after = names[inside[-1] + 1 :]
    whole = [n for n in names[: inside[-1] + 1] if not any(a.startswith(f"{n}.") for a in after)]
    return [n for n in whole if n.rpartition(".")[0] not in whole]


def _check_options(config: BackboneConfig) -> None:
    """Raise RefineError if a timm model has options of a ResNet."""
    if config.deform_stages or config.stride_in_1x1:
        raise RefineError(
            f"backbone.deform_stages, backbone.stride_in_1x1: not supported by {config.name}; omit them"
        )


def build_backbone(config: BackboneConfig) -> Backbone:
    """Build a backbone with random weights (to load others, see `pretrained.load_pretrained`).

    Raises:
        RefineError: the name is unknown, a value is out of range, or the architecture does not support an option.
    """
    check_bounds(config, "backbone")
    if config.name in RESNETS:
        return ResNet(config)
    if config.name.startswith("timm/"):
        if config.name.removeprefix("timm/") in LITES:
            return LiteBackbone(config)
        return TimmBackbone(config)
    raise RefineError(
        f"backbone.name: {config.name!r} is unknown; choose {', '.join(RESNETS)}, or timm/NAME (a timm model)"
    )
