"""Optimizer, its parameter groups, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from refine.errors import RefineError
from refine.training.config import OptimConfig


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict]:
    """Group trained parameters by learning rate and weight decay.

    Norms, biases and other vectors have no weight decay; the learning rate of `model.backbone` is multiplied by
    `backbone_lr_factor`.

    Args:
        model: network; parameters with `requires_grad=False` are excluded.
        config: learning rates and weight decay.

    Returns:
        Up to four parameter groups for a torch optimizer, with the additional keys `names` (parameter names, in
        order) and `factor` (multiplier of the learning rate).

    Raises:
        RefineError: no parameter requires a gradient.
    """
    groups: dict[tuple[bool, bool], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        backbone, decayed = name.startswith("backbone."), parameter.ndim > 1
        group = groups.setdefault(
            (backbone, decayed),
            {
                "params": [],
                "names": [],
                "factor": config.backbone_lr_factor if backbone else 1.0,
                "weight_decay": config.weight_decay if decayed else 0.0,
            },
        )
        group["params"].append(parameter)
        group["names"].append(name)
    if not groups:
        raise RefineError("optim.train_only: no parameter is left to train; name a trainable part of the model")
    return list(groups.values())


def build_optimizer(model: nn.Module, config: OptimConfig) -> Optimizer:
    """Build SGD with momentum or AdamW over `parameter_groups`; `set_learning_rate` sets the learning rate."""
    groups = parameter_groups(model, config)
    if config.name == "sgd":
        return SGD(groups, lr=config.lr, momentum=config.momentum)
    return AdamW(groups, lr=config.lr, betas=config.betas)


def freeze_except(model: nn.Module, prefixes: list[str]) -> None:
    """Freeze all parameters whose names start with none of the prefixes; without prefixes, freeze nothing.

    Raises:
        RefineError: no parameter name starts with one of the prefixes.
    """
    names = [name for name, _ in model.named_parameters()]
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in names):
            parts = ", ".join(sorted({name.split(".")[0] for name in names}))
            raise RefineError(f"optim.train_only: the model has no part {prefix!r}; it has {parts}")
    if prefixes:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and name.startswith(tuple(prefixes)))


def learning_rate(step: int, config: OptimConfig) -> float:
    """Return the learning rate of the update from `step` to `step + 1`, without `backbone_lr_factor`.

    The rate follows the schedule, multiplied by a linear warm-up over the first `warmup_steps` and by
    batch_size / reference_batch_size [Goyal et al. 2017].
    """
    rate = config.lr
    if config.reference_batch_size:
        rate *= config.batch_size / config.reference_batch_size
    if step < config.warmup_steps:
        start = config.warmup_factor
        rate *= start + (1 - start) * step / config.warmup_steps
    if config.schedule == "steps":
        rate *= config.gamma ** sum(step >= milestone for milestone in config.milestones)
    elif config.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * step / config.max_steps))
    return rate


def set_learning_rate(optimizer: Optimizer, step: int, config: OptimConfig) -> float:
    """Set the learning rate of every group for this step; return that of the groups with factor 1."""
    rate = learning_rate(step, config)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]
    return rate
