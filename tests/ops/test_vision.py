"""Operators against torchvision's own functions."""

import pytest
import torch
import torchvision

from refine.ops import vision


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling", [0, 2])
def test_roi_align_and_its_gradient_equal_torchvision(aligned: bool, sampling: int) -> None:
    feature = torch.randn(2, 3, 12, 17, requires_grad=True)
    rois = torch.tensor([[0, 3.5, 4, 40, 30], [1, -5, 0, 12, 47], [1, 8, 8, 8.5, 8.5]])
    expected = torchvision.ops.roi_align(feature, rois, 7, 0.25, sampling, aligned)
    bins = vision.roi_align(feature, rois, 7, 0.25, sampling, aligned)
    assert torch.equal(bins, expected)
    weight = torch.randn_like(bins)
    gradients = [torch.autograd.grad((b * weight).sum(), feature)[0] for b in (bins, expected)]
    torch.testing.assert_close(*gradients)
    with torch.no_grad():
        assert torch.equal(vision.roi_align(feature, rois, 7, 0.25, sampling, aligned), expected)
