"""Parameter groups and learning rates, against values computed by hand."""

import pytest
import torch
from torch import nn

from refine.errors import RefineError
from refine.training.config import OptimConfig
from refine.training.ema import build_ema
from refine.training.optim import build_optimizer, freeze_except, learning_rate, set_learning_rate


def _net() -> nn.Module:
    return nn.ModuleDict(
        {
            "backbone": nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)),
            "head": nn.Linear(4, 2),
        }
    )


def test_norms_and_biases_are_not_decayed() -> None:
    optimizer = build_optimizer(_net(), OptimConfig(weight_decay=0.5, backbone_lr_factor=0.1))
    found = {n: (g["weight_decay"], g["factor"]) for g in optimizer.param_groups for n in g["names"]}
    assert found == {
        "backbone.0.weight": (0.5, 0.1),
        "backbone.0.bias": (0.0, 0.1),
        "backbone.1.weight": (0.0, 0.1),
        "backbone.1.bias": (0.0, 0.1),
        "head.weight": (0.5, 1.0),
        "head.bias": (0.0, 1.0),
    }
    set_learning_rate(optimizer, 0, OptimConfig(lr=2.0, warmup_steps=0, reference_batch_size=None))
    assert {g["lr"] for g in optimizer.param_groups} == {2.0, 0.2}


def test_steps_schedule() -> None:
    config = OptimConfig(lr=1.0, warmup_steps=10, warmup_factor=0.0, milestones=[20, 30])
    rates = [learning_rate(step, config) for step in (0, 5, 10, 19, 20, 30)]
    assert rates == pytest.approx([0, 0.5, 1, 1, 0.1, 0.01])


def test_cosine_ends_at_zero() -> None:
    config = OptimConfig(lr=1.0, warmup_steps=0, schedule="cosine", max_steps=100)
    assert [learning_rate(s, config) for s in (0, 50, 100)] == pytest.approx([1, 0.5, 0])


def test_linear_scaling() -> None:
    config = OptimConfig(lr=0.02, reference_batch_size=16, batch_size=4, warmup_steps=0, schedule="constant")
    assert learning_rate(0, config) == pytest.approx(0.005)


def test_freeze_except() -> None:
    net = _net()
    freeze_except(net, ["head"])
    assert [n for n, p in net.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]
    with pytest.raises(RefineError, match="no part 'hat'; it has backbone, head"):
        freeze_except(net, ["hat"])


def test_moving_average_of_weights() -> None:
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 1.0)
    ema = build_ema(net, decay=0.9)
    for value in (1.0, 2.0, 4.0):
        nn.init.constant_(net.weight, value)
        ema.update_parameters(net)
    # The first update copies the weights; the next two keep 2/11 and 3/12 of the old average.
    second = 2 / 11 * 1 + 9 / 11 * 2
    assert torch.allclose(ema.module.weight, torch.tensor(3 / 12 * second + 9 / 12 * 4))
