"""3 × 3 convolutions by Winograd's algorithm."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from refine.modeling.winograd import MAX_BYTES, WinogradConv2d, is_faster, use_winograd

pytestmark = pytest.mark.skipif(not torch._nnpack_available(), reason="this PyTorch has no NNPACK")


def make_conv(channels=64, outputs=80, **options):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(channels, outputs, 3, **{"padding": 1} | options))
    use_winograd(network)
    return network[0]


@pytest.fixture
def calls(monkeypatch):
    """Shapes of the inputs that NNPACK has convolved."""
    shapes, compute = [], torch._nnpack_spatial_convolution

    def counted(x, *arguments):
        shapes.append(tuple(x.shape))
        return compute(x, *arguments)

    monkeypatch.setattr(torch, "_nnpack_spatial_convolution", counted)
    return shapes


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(1, 30, 31), (2, 24, 36), (30, 14, 14), (1, 9, 300)])
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_equal_the_direct_convolution(calls, layout, shape, bias):
    conv = make_conv(bias=bias)
    x = (3 * torch.randn(shape[0], 64, *shape[1:]) + 2).relu().to(memory_format=layout)
    with torch.no_grad():
        outputs = conv(x)
        exact = F.conv2d(x.double(), conv.weight.double(), conv.bias.double() if bias else None, padding=1)
    assert calls == [tuple(x.shape)]
    torch.testing.assert_close(outputs.double(), exact, rtol=0, atol=5e-5 * float(exact.abs().max()))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("count", "side", "mosaic"), [(2, 20, (21, 42)), (7, 14, (30, 60)), (36, 7, (48, 48)), (50, 7, (56, 64))]
)
def test_small_maps_of_many_channels_are_joined(calls, layout, count, side, mosaic):
    """A row and a column of zeros separate the maps; values at their borders do not reach each other."""
    conv = make_conv(128, 144)
    x = (3 * torch.randn(count, 128, side, side) + 2).relu().to(memory_format=layout)
    with torch.no_grad():
        outputs = conv(x)
        exact = F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1)
    assert calls == [(1, 128, *mosaic)]
    assert outputs.is_contiguous()
    torch.testing.assert_close(outputs.double(), exact, rtol=0, atol=5e-5 * float(exact.abs().max()))


@pytest.mark.parametrize("bias", [True, False])
def test_joined_maps_are_as_exact_as_each_alone(calls, bias):
    """Tiles that hold cells of two maps round them separately, however much their values differ."""
    conv = make_conv(128, 144, bias=bias)
    x = torch.randn(7, 128, 14, 14)
    x *= torch.tensor([1, 1e6, 0, 1, 1e-6, 1, 1])[:, None, None, None]
    before = x.clone()
    with torch.no_grad():
        outputs = conv(x)
        exact = F.conv2d(x.double(), conv.weight.double(), conv.bias.double() if bias else None, padding=1)
    assert calls == [(1, 128, 30, 60)]
    assert torch.equal(x, before)
    errors, largest = (outputs - exact).abs().amax((1, 2, 3)), exact.abs().amax((1, 2, 3))
    assert (errors <= 5e-5 * largest).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_infinite_values_stay_in_their_map(value):
    conv = make_conv(128, 128)
    x = torch.randn(7, 128, 14, 14)
    x[1, 0, 6, 0] = value
    with torch.no_grad():
        finite = conv(x).isfinite().flatten(1).all(1)
    assert finite.tolist() == [True, False, True, True, True, True, True]


@pytest.mark.parametrize("shape", [(0, 14, 14), (2, 7, 7), (1, 14, 14)], ids=str)
def test_few_small_maps_are_computed_directly(calls, shape):
    conv = make_conv(128, 128)
    x = torch.randn(shape[0], 128, *shape[1:])
    with torch.no_grad():
        torch.testing.assert_close(conv(x), F.conv2d(x, conv.weight, conv.bias, padding=1))
    assert not calls


def test_convolutions_of_one_pixel_keep_the_layout_of_their_input():
    """With weights in channels-last layout, PyTorch converts contiguous maps."""
    network = nn.Sequential(nn.Conv2d(64, 16, 1)).to(memory_format=torch.channels_last)
    x = torch.randn(1, 64, 20, 30)
    with torch.no_grad():
        before = network(x)
        assert before.is_contiguous(memory_format=torch.channels_last)
        use_winograd(network)
        torch.testing.assert_close(network(x), before)
        assert network(x).is_contiguous()
        assert network(x.to(memory_format=torch.channels_last)).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(0, 14, 14), (8, 14, 14), (1000, 7, 7), (1, 12, 18), (1, 2, 400)], ids=str)
def test_small_maps_are_computed_directly(calls, shape):
    conv = make_conv()
    x = torch.randn(shape[0], 64, *shape[1:])
    with torch.no_grad():
        torch.testing.assert_close(conv(x), F.conv2d(x, conv.weight, conv.bias, padding=1))
    assert not calls


def test_huge_maps_are_computed_directly():
    """The transformed maps of this convolution would exceed 1 GiB."""
    side = 6 * int((MAX_BYTES / (4 * 64 * 128)) ** 0.5)
    for height, expected in ((side, True), (side + 12, False)):
        assert is_faster((1, 64, height, height), torch.zeros(64, 64, 3, 3)) is expected


def test_without_nnpack_and_in_compilation_it_is_computed_directly(calls, monkeypatch):
    conv, x = make_conv(), torch.randn(1, 64, 30, 30)
    cases = ((torch, "_nnpack_available", False), (torch.compiler, "is_compiling", True))
    for module, name, value in (*cases, (torch.jit, "is_tracing", True)):
        with monkeypatch.context() as patch, torch.no_grad():
            patch.setattr(module, name, lambda value=value: value)
            torch.testing.assert_close(conv(x), F.conv2d(x, conv.weight, conv.bias, padding=1))
    assert not calls


def test_map_without_a_batch_is_computed_directly(calls):
    conv, x = make_conv(), torch.randn(64, 30, 30)
    with torch.no_grad():
        torch.testing.assert_close(conv(x), conv(x[None])[0], rtol=0, atol=1e-4)
    assert calls == [(1, 64, 30, 30)]


def test_gradients_and_half_precision_are_computed_directly(calls):
    conv = make_conv()
    x = torch.randn(1, 64, 30, 30)
    torch.testing.assert_close(conv(x), F.conv2d(x, conv.weight, conv.bias, padding=1))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert conv(x).dtype == torch.bfloat16
    with torch.no_grad():
        assert conv.double()(x.double()).dtype == torch.float64
    assert not calls


@pytest.mark.parametrize(
    "options",
    [
        {"channels": 32},
        {"outputs": 32},
        {"stride": 2},
        {"padding": 0},
        {"dilation": 2, "padding": 2},
        {"groups": 2},
        {"padding_mode": "reflect"},
    ],
    ids=str,
)
def test_other_convolutions_stay(options):
    assert type(make_conv(**options)) is nn.Conv2d


def test_subclasses_stay():
    class Other(nn.Conv2d):
        pass

    network = nn.Sequential(Other(64, 64, 3, padding=1))
    use_winograd(network)
    assert type(network[0]) is Other
    assert type(make_conv()) is WinogradConv2d
