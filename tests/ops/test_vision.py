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


def test_deterministic_gradients_are_those_of_torchvisions_function(monkeypatch) -> None:
    # On a GPU it replaces the operator, whose gradient is refused.
    feature, rois = torch.randn(1, 1, 4, 4, requires_grad=True), torch.tensor([[0, 0.0, 0, 4, 4]])
    monkeypatch.setattr(torchvision.ops, "roi_align", lambda *arguments: arguments)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert vision.roi_align(feature, rois, 2, 1.0, 2, True) == (feature, rois, 2, 1.0, 2, True)
    assert vision.roi_align(feature.detach(), rois, 2, 1.0, 2, True).shape == (1, 1, 2, 2)
