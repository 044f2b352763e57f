"""Tests of deformable convolution and its gradients against torchvision."""

import pytest
import torch
from torchvision.ops import deform_conv2d

from refine.ops.deform import deform_conv


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (1, 4), (2, 2)])
def test_values_and_gradients_equal_torchvision(stride, groups, masked, layout):
    g = torch.Generator().manual_seed(stride + groups)
    size = {1: (5, 7), 2: (3, 4)}[stride]
    x = torch.randn(2, 8, 5, 7, generator=g, dtype=torch.double).contiguous(memory_format=layout)
    # Some taps straddle the border, some lie outside.
    offset = torch.randn(2, 18, *size, generator=g, dtype=torch.double) * 4
    weight = torch.randn(12, 8 // groups, 3, 3, generator=g, dtype=torch.double)
    mask = torch.rand(2, 9, *size, generator=g, dtype=torch.double) if masked else None
    results = []
    for function in (deform_conv, deform_conv2d):
        inputs = [t.detach().clone().requires_grad_() for t in (x, offset, weight) + ((mask,) if masked else ())]
        out = function(*inputs[:3], stride=stride, padding=1, mask=inputs[3] if masked else None)
        weights = torch.arange(out.numel(), dtype=torch.double).view(out.shape)
        results.append([out, *torch.autograd.grad((out * weights).sum(), inputs)])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("of_weight", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("of_offset", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("of_input", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_is_computed_in_float32(of_input, of_offset, of_weight, autocast):
    g = torch.Generator().manual_seed(0)
    shapes = ((1, 4, 6, 6), (1, 18, 6, 6), (4, 4, 3, 3), (1, 9, 6, 6))
    values = [torch.randn(shape, generator=g) for shape in shapes]
    inputs = [v.to(kind) for v, kind in zip(values, (of_input, of_offset, of_weight, of_offset), strict=True)]
    x, offset, weight, mask = [v.requires_grad_() for v in inputs]
    with torch.autocast("cpu", enabled=autocast):
        y = deform_conv(x, offset, weight, mask=mask)
    expected = deform_conv2d(*(v.float() for v in (x, offset, weight)), padding=1, mask=mask.float())
    assert y.dtype == of_input
    torch.testing.assert_close(y, expected.to(of_input))
    gradients = torch.autograd.grad(y.sum(), inputs)
    assert [gradient.dtype for gradient in gradients] == [of_input, of_offset, of_weight, of_offset]
