"""Connected components of a graph."""

from __future__ import annotations

import torch
from torch import Tensor


def connect(one: Tensor, other: Tensor, count: int) -> Tensor:
    """Label connected components: links Tensor[L] int64 each among `count` nodes -> Tensor[count] int64."""
    component = torch.arange(count, device=one.device)
    while True:
        smaller = torch.minimum(component[one], component[other])
        joined = component.clone()
        for end in (component[one], component[other], one, other):
            joined.scatter_reduce_(0, end, smaller, "amin")
        joined = joined[joined]
        if torch.equal(joined, component):
            return component
        component = joined
