"""Layers with channels for each thing class, of which a data set of stuff alone has none."""

from __future__ import annotations

from torch import Tensor, nn


class _PerClass(nn.Module):
    """Part of a layer that is neither initialised nor trained if it has no elements."""

    weight: Tensor

    def reset_parameters(self) -> None:
        if self.weight.numel():
            super().reset_parameters()  # type: ignore[misc]  # of the layer
        else:  # PyTorch would warn, and processes would wait for gradients
            self.requires_grad_(False)


class PerClassLinear(_PerClass, nn.Linear):
    """Linear layer that may have no elements."""


class PerClassConv2d(_PerClass, nn.Conv2d):
    """Convolution that may have no elements."""
