"""Layers with channels for each thing class, of which a data set of stuff alone has none."""

from __future__ import annotations

from torch import nn


class PerClassLinear(nn.Linear):
    """Linear layer that is neither initialised nor trained if it has no elements."""

    def reset_parameters(self) -> None:
        if self.weight.numel():
            super().reset_parameters()
        else:  # PyTorch would warn, and processes would wait for gradients
            self.requires_grad_(False)


class PerClassConv2d(nn.Conv2d):
    """Convolution that is neither initialised nor trained if it has no elements."""

    def reset_parameters(self) -> None:
        if self.weight.numel():
            super().reset_parameters()
        else:  # see above
            self.requires_grad_(False)
