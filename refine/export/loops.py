"""Loops that exporters keep: `while_loop` and `scan` of PyTorch, called without torch.compile.

PyTorch's functions of these names compile the body when they run outside torch.export, and cannot see sizes that
depend on the data; the operators below them take the tensors that a body uses as explicit arguments instead.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]


def while_loop(
    running: Callable[..., Tensor], step: Callable[..., Tensors], state: Tensors, used: Tensors
) -> Tensors:
    """Repeat `state = step(*state, *used)` while `running(*state, *used)`, a Tensor[] bool.

    The step returns new tensors of the state's shapes and dtypes, and takes sizes from the shapes of its arguments.
    """
    found: Tensors = torch.ops.higher_order.while_loop(running, step, state, used)
    return found


def scan(step: Callable[..., Tensors], rows: Tensors, used: Tensors) -> Tensors:
    """Return the stacked results of `step(*row, *used)` over the first axis of `rows`."""

    def with_carry(carry: Tensor, *arguments: Tensor) -> Tensors:
        return (carry.clone(), *step(*arguments))

    found: list[Tensor] = torch.ops.higher_order.scan(with_carry, [torch.zeros(1)], list(rows), used)
    return tuple(found[1:])
