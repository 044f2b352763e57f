"""Backbones and FPN against torchvision's and timm's networks, and by hand."""

from functools import partial

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from refine.errors import RefineError
from refine.modeling.backbones import build_backbone
from refine.modeling.config import BackboneConfig
from refine.modeling.deform import DeformableConv
from refine.modeling.fpn import FPN
from refine.modeling.norms import FrozenBatchNorm, ImageGroupNorm, conv_norm, make_norm


def small(**changes) -> BackboneConfig:
    """Config of a ResNet-50 with a sixteenth of the width."""
    return BackboneConfig(stem_width=16, width_per_group=16, res2_channels=64, weights=None, **changes)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext101_32x8d"])
def test_resnet_equals_torchvision(name: str) -> None:
    expected = torchvision.models.get_model(name).eval()
    backbone = build_backbone(BackboneConfig(name=name, norm="bn")).eval()
    backbone.load_state_dict({k: v for k, v in expected.state_dict().items() if not k.startswith("fc.")})
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        features = backbone(x)
        y = expected.maxpool(expected.relu(expected.bn1(expected.conv1(x))))
        for n, stage in enumerate((expected.layer1, expected.layer2, expected.layer3, expected.layer4)):
            y = stage(y)
            assert torch.equal(features[n], y)
    assert backbone.channels == [f.shape[1] for f in features]
    assert [96 // f.shape[3] for f in features] == list(backbone.strides) == [4, 8, 16, 32]


def test_reduced_widths() -> None:
    backbone = build_backbone(small())
    assert backbone.channels == [64, 128, 256, 512]
    assert backbone.get_parameter("conv1.weight").shape == (16, 3, 7, 7)
    assert backbone.get_parameter("layer1.0.conv2.weight").shape == (16, 16, 3, 3)
    assert backbone.get_parameter("layer4.0.conv2.weight").shape == (128, 128, 3, 3)


def test_stride_in_1x1_skips_odd_pixels_before_the_3x3() -> None:
    backbone = build_backbone(small(norm="none", stride_in_1x1=True))
    block = backbone.get_submodule("layer2.0")
    assert (block.conv1.stride, block.conv2.stride) == ((2, 2), (1, 1))
    x = torch.randn(1, 64, 8, 8)
    changed = x.clone()
    changed[:, :, 1::2, :] += 1
    changed[:, :, :, 1::2] += 1
    with torch.no_grad():
        assert torch.equal(block(x), block(changed))


@pytest.mark.parametrize(
    ("norm", "kind"),
    [
        ("gn", ImageGroupNorm),
        ("frozen_bn", FrozenBatchNorm),
        ("sync_bn", nn.SyncBatchNorm),
        ("bn", nn.BatchNorm2d),
        ("none", nn.Identity),
    ],
)
def test_norms(norm, kind: type) -> None:
    backbone = build_backbone(small(norm=norm))
    assert type(backbone.get_submodule("bn1")) is kind
    assert type(backbone.get_submodule("layer2.0.downsample.1")) is kind
    block = conv_norm(4, 8, norm=norm, stride=2)
    assert type(block[1]) is kind
    assert (block[0].bias is None) == (norm != "none")
    assert block(torch.randn(2, 4, 6, 6)).shape == (2, 8, 3, 3)
    assert len(conv_norm(4, 8, kernel=1, norm=norm, relu=False)) == 2


@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_frozen_norm_is_the_same_with_and_without_gradient(eps: float) -> None:
    norm = FrozenBatchNorm(5, eps)
    for values in norm.buffers():
        values.uniform_(0.5, 2)
    expected = FrozenBatchNorm2d(5, eps)
    expected.load_state_dict(norm.state_dict())
    x = torch.randn(2, 5, 3, 4)
    torch.testing.assert_close(norm(x), expected(x))
    assert torch.equal(norm(x.clone().requires_grad_()), expected(x))


def test_weights_of_a_trained_norm_fit_a_frozen_one() -> None:
    FrozenBatchNorm(3).load_state_dict(nn.BatchNorm2d(3).state_dict())


@pytest.mark.parametrize(("channels", "groups"), [(256, 32), (48, 24), (16, 16), (40, 20), (7, 7), (37, 1)])
def test_groups_of_groupnorm(channels: int, groups: int) -> None:
    norm = make_norm("gn", channels)
    assert isinstance(norm, nn.GroupNorm)
    assert norm.num_groups == groups


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_groupnorm_of_boxes_is_that_of_pytorch(dtype: torch.dtype) -> None:
    norm = make_norm("gn", 64, of_boxes=True)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)  # type: ignore[operator, union-attr]
    x = torch.randn(5, 64, 7, 7).to(dtype).to(memory_format=torch.channels_last)
    expected = F.group_norm(x.float(), 32, norm.weight, norm.bias)
    found = norm.to(dtype)(x)
    torch.testing.assert_close(found.float(), expected, atol=1e-5 if dtype == torch.float32 else 0.05, rtol=0.01)
    # The layout that is fast on a CPU: GroupNorm keeps that of its input.
    assert found.is_contiguous() == (dtype != torch.float32)


@pytest.mark.parametrize(
    ("frozen_stages", "first_trained"),
    [(0, "conv1.weight"), (1, "layer1.0.conv1.weight"), (2, "layer2.0.conv1.weight"), (5, None)],
)
def test_frozen_stages(frozen_stages: int, first_trained: str | None) -> None:
    backbone = build_backbone(small(norm="bn", frozen_stages=frozen_stages)).train()
    names = [name for name, _ in backbone.named_parameters()]
    trained = [name for name, p in backbone.named_parameters() if p.requires_grad]
    assert trained == (names[names.index(first_trained) :] if first_trained else [])
    assert backbone.get_submodule("bn1").training == (frozen_stages < 1)
    assert backbone.get_submodule("layer1.0.bn1").training == (frozen_stages < 2)
    before = backbone.get_buffer("layer1.0.bn1.running_mean").clone()
    backbone(torch.randn(2, 3, 64, 64))
    assert torch.equal(before, backbone.get_buffer("layer1.0.bn1.running_mean")) == (frozen_stages >= 2)


def tap_by_tap(x: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor, stride: int) -> Tensor:
    """Reference 3×3 deformable convolution with loops: bilinear taps, zero outside the image."""
    batch, channels, height, width = x.shape
    out = torch.zeros(batch, weight.shape[0], *offset.shape[2:])
    for b in range(batch):
        for row in range(offset.shape[2]):
            for col in range(offset.shape[3]):
                for tap in range(9):
                    y = row * stride - 1 + tap // 3 + float(offset[b, 2 * tap, row, col])
                    x_ = col * stride - 1 + tap % 3 + float(offset[b, 2 * tap + 1, row, col])
                    value = torch.zeros(channels)
                    for j in range(height):
                        for i in range(width):
                            value += x[b, :, j, i] * max(0, 1 - abs(j - y)) * max(0, 1 - abs(i - x_))
                    if mask is not None:
                        value = value * mask[b, tap, row, col]
                    out[b, :, row, col] += weight[:, :, tap // 3, tap % 3] @ value
    return out


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_deformable_convolution_by_hand(modulated: bool, stride: int) -> None:
    conv = DeformableConv(2, 3, stride, modulated=modulated)
    nn.init.normal_(conv.offset.weight, std=0.3)
    x = torch.randn(2, 2, 5, 4)
    with torch.no_grad():
        prediction = conv.offset(x)
        mask = torch.sigmoid(prediction[:, 18:]) if modulated else None
        expected = tap_by_tap(x, prediction[:, :18], mask, conv.weight, stride)
        torch.testing.assert_close(conv(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 4])
def test_deformable_convolution_starts_as_a_plain_one(groups: int) -> None:
    conv = DeformableConv(8, 8, stride=2, groups=groups)
    x = torch.randn(2, 8, 10, 14)
    expected = nn.functional.conv2d(x, conv.weight, stride=2, padding=1, groups=groups)
    torch.testing.assert_close(conv(x), expected, rtol=1e-4, atol=1e-5)


def test_deformable_stages() -> None:
    backbone = build_backbone(small(deform_stages=[4, 5], modulated=True))
    deformable = [name for name, m in backbone.named_modules() if isinstance(m, DeformableConv)]
    assert deformable == [f"layer3.{n}.conv2" for n in range(6)] + [f"layer4.{n}.conv2" for n in range(3)]
    assert backbone.get_parameter("layer4.0.conv2.offset.weight").shape[0] == 27
    assert [f.shape[-2:] for f in backbone(torch.randn(1, 3, 64, 64))][-1] == (2, 2)


@pytest.mark.parametrize(
    ("name", "channels"),
    [("tf_efficientnet_lite0", [24, 40, 112, 320]), ("convnext_atto", [40, 80, 160, 320])],
)
def test_timm(name: str, channels: list[int]) -> None:
    backbone = build_backbone(BackboneConfig(name=f"timm/{name}", frozen_stages=2)).train()
    features = backbone(torch.randn(1, 3, 64, 96))
    assert backbone.channels == channels == [f.shape[1] for f in features]
    assert [tuple(f.shape[2:]) for f in features] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert not features[0].requires_grad  # everything before it is frozen
    assert features[1].requires_grad


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnet_lite2"])
def test_efficientnet_lite_equals_timm(name: str) -> None:
    """Weights from the same seed, features and running statistics of odd sizes in both modes."""
    torch.manual_seed(0)
    backbone = build_backbone(BackboneConfig(f"timm/{name}", weights=None, frozen_stages=0))
    after = torch.get_rng_state()
    torch.manual_seed(0)
    expected = timm.create_model(name, features_only=True)
    assert torch.equal(after, torch.get_rng_state())
    assert backbone.channels == expected.feature_info.channels()[1:]
    x = torch.randn(1, 3, 70, 101)
    for mode in (True, False):
        features = backbone.train(mode)(x)
        assert all(map(torch.equal, features, expected.train(mode)(x)[1:]))
    assert len(features) == 4
    state, others = backbone.state_dict(), expected.state_dict()
    assert state.keys() == {f"body.{key}" for key in others}
    assert all(torch.equal(state[f"body.{key}"], value) for key, value in others.items())


def test_timm_frozen_batchnorm() -> None:
    backbone = build_backbone(BackboneConfig(name="timm/resnet18", norm="frozen_bn")).train()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in backbone.modules())
    before = {k: v.clone() for k, v in backbone.state_dict().items() if "running" in k}
    backbone(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(v, backbone.state_dict()[k]) for k, v in before.items())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BackboneConfig(name="resnet51"), "'resnet51' is unknown"),
        (BackboneConfig(name="resnet50", deform_stages=[2]), r"deform_stages is \[2\]; give a number from 3 to 5"),
        (BackboneConfig(name="resnet50", frozen_stages=6), "frozen_stages is 6; give a number from 0 to 5"),
        (BackboneConfig(name="resnet18", stride_in_1x1=True), "stride_in_1x1: resnet18"),
        (BackboneConfig(name="timm/no_such_model"), "no model 'no_such_model'"),
        (BackboneConfig(name="timm/vit_tiny_patch16_224"), r"strides \[16, 16, 16\]"),
        (BackboneConfig(name="timm/swin_tiny_patch4_window7_224"), "does not support all image sizes"),
        (
            BackboneConfig(name="timm/convnext_atto", frozen_stages=1),
            "frozen_stages: timm/convnext_atto has no module that ends at stride 2",
        ),
        (BackboneConfig(name="timm/resnet18", deform_stages=[5]), "not supported by timm/resnet18"),
    ],
)
def test_unsupported_options_are_reported(config: BackboneConfig, message: str) -> None:
    with pytest.raises(RefineError, match=message):
        build_backbone(config)


@pytest.mark.parametrize("norm", ["gn", "none"])
def test_fpn_equals_torchvision(norm) -> None:
    torch.manual_seed(0)
    fpn = FPN([8, 16, 24, 32], 64, norm)
    torch.manual_seed(0)
    layer = None if norm == "none" else partial(make_norm, norm)
    expected = FeaturePyramidNetwork([8, 16, 24, 32], 64, LastLevelMaxPool(), layer)
    state = fpn.levels.state_dict()
    assert state.keys() == expected.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in expected.state_dict().items())
    sizes = [(13, 21), (7, 11), (4, 6), (2, 3)]
    maps = [torch.randn(2, c, *size) for c, size in zip([8, 16, 24, 32], sizes, strict=True)]
    levels = expected({str(n): feature for n, feature in enumerate(maps)})
    assert all(map(torch.equal, fpn(maps), levels.values()))
    assert len(levels) == 5


@pytest.mark.parametrize("norm", ["gn", "none"])
def test_fpn_by_hand(norm) -> None:
    """Top-down sums in plain operations, for sizes that are not multiples of 32."""
    fpn = FPN([8, 16, 24, 32], 64, norm)
    sizes = [(13, 21), (7, 11), (4, 6), (2, 3)]
    features = [torch.randn(2, c, *size) for c, size in zip([8, 16, 24, 32], sizes, strict=True)]
    levels = fpn(features)
    assert [tuple(level.shape) for level in levels] == [(2, 64, *size) for size in [*sizes, (1, 2)]]
    inner = None
    for n in (3, 2, 1, 0):
        lateral = fpn.levels.inner_blocks[n](features[n])
        if inner is not None:
            rows = torch.arange(sizes[n][0]) * sizes[n + 1][0] // sizes[n][0]
            cols = torch.arange(sizes[n][1]) * sizes[n + 1][1] // sizes[n][1]
            lateral = lateral + inner[:, :, rows][:, :, :, cols]
        inner = lateral
        torch.testing.assert_close(levels[n], fpn.levels.layer_blocks[n](inner))
    assert torch.equal(levels[4], levels[3][:, :, ::2, ::2])
    biases = [m.bias is not None for m in fpn.modules() if isinstance(m, nn.Conv2d)]
    assert all(b == (norm == "none") for b in biases)
