"""Update of the weights by one batch, on one process or many."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from refine.errors import RefineError
from refine.modeling.model import PanopticModel
from refine.modeling.occlusion import OcclusionHead, occlusion_loss
from refine.runtime import Processes
from refine.structures import Instances, Targets
from refine.training.config import RunConfig
from refine.training.ema import build_ema
from refine.training.optim import build_optimizer, freeze_except, set_learning_rate
from refine.training.state import Learner, Progress

Batch = tuple[Sequence[Tensor], Sequence[Targets]] | tuple[Sequence[Instances], Sequence[Tensor]]
"""Images, each Tensor[3, H, W] uint8, and their targets; or instances and their (front, back) pairs."""

AUTOCAST = {"32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class _Losses(nn.Module):
    """Module whose `forward` is `model.loss`, as DistributedDataParallel requires."""

    def __init__(self, model: PanopticModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Sequence[Tensor], targets: Sequence[Targets]) -> dict[str, Tensor]:
        return self.model.loss(self.model.image_batch(images), targets)


class _PairLosses(nn.Module):
    """Module whose `forward` computes the loss of an occlusion head alone."""

    def __init__(self, head: OcclusionHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, instances: Sequence[Instances], pairs: Sequence[Tensor]) -> dict[str, Tensor]:
        return {"loss_occlusion": occlusion_loss(self.head, instances, pairs)}


class TrainingModule:
    """Learner with its update step.

    Args:
        model: network, or an occlusion head alone, on the device of this process.
        config: config of the run.
        group: processes that share the batch.
        fix: what to do if a loss or a gradient is not finite, for the message; by default, fields of the config.
    """

    def __init__(
        self, model: PanopticModel | OcclusionHead, config: RunConfig, group: Processes, fix: str = ""
    ) -> None:
        freeze_except(model, config.optim.train_only)
        train_mode(model)
        self.config, self.group, self.fix = config, group, fix or _fix(config)
        scaler = torch.amp.GradScaler(group.device.type, enabled=config.optim.precision == "fp16")
        ema = build_ema(model, config.optim.ema) if config.optim.ema else None
        self.learner = Learner(model, build_optimizer(model, config.optim), ema, scaler, Progress())
        self.losses: nn.Module = _PairLosses(model) if isinstance(model, OcclusionHead) else _Losses(model)
        if group.count > 1:
            self.losses = DistributedDataParallel(
                self.losses, device_ids=[group.device] if group.device.type == "cuda" else None
            )

    def update(self, parts: Sequence[Batch]) -> dict[str, Tensor]:
        """Update the weights by one step.

        The generator for sampling inside the network is seeded by (seed, step, part, process), so that a resumed
        run draws the same samples.

        Args:
            parts: this process's share of the batch, in `optim.accumulate` parts.

        Returns:
            Scalars by name: `loss` and its `loss_*` terms of this process's share, `lr` and `gradient_norm`.

        Raises:
            RefineError: a loss or a gradient is not finite; the weights are unchanged.
        """
        model, optimizer, scaler = self.learner.model, self.learner.optimizer, self.learner.scaler
        config, step = self.config.optim, self.learner.progress.step
        rate = set_learning_rate(optimizer, step, config)
        optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        for number, (inputs, targets) in enumerate(parts):
            torch.manual_seed(derive_seed(self.config.seed, step, number, self.group.rank))
            with self._unsynchronised(number < len(parts) - 1):
                losses = self._forward(inputs, targets)
                losses["loss"] = torch.stack(list(losses.values())).sum()
                self._check_losses(losses, targets)
                scaler.scale(losses["loss"] / len(parts)).backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach() / len(parts)
        sums["gradient_norm"] = self._clip()
        scaler.step(optimizer)
        scaler.update()
        if self.learner.ema is not None:
            self.learner.ema.update_parameters(model)
        self.learner.progress.step += 1
        sums["lr"] = torch.tensor(rate, device=self.group.device)
        return sums

    def _forward(
        self, inputs: Sequence[Tensor | Instances], targets: Sequence[Targets | Tensor]
    ) -> dict[str, Tensor]:
        device = self.group.device
        dtype = AUTOCAST[self.config.optim.precision]
        moved = [t.to(device, non_blocking=True) for t in targets]
        with torch.autocast(device.type, dtype) if dtype else nullcontext():
            return {k: v.float() for k, v in self.losses(inputs, moved).items()}

    def _unsynchronised(self, skip: bool) -> AbstractContextManager:
        """Return a context without gradient synchronisation if `skip`; only the last part synchronises."""
        if skip and isinstance(self.losses, DistributedDataParallel):
            return self.losses.no_sync()
        return nullcontext()

    def _clip(self) -> Tensor:
        """Clip the gradients to `clip_norm`; return their norm before clipping."""
        config, optimizer = self.config.optim, self.learner.optimizer
        self.learner.scaler.unscale_(optimizer)
        parameters = [p for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        norm = get_total_norm([p.grad for p in parameters])
        # Under fp16 occasional overflows are expected: the scaler skips the step and lowers the scale.
        if not self.learner.scaler.is_enabled() and not math.isfinite(norm.item()):
            step = self.learner.progress.step
            raise RefineError(f"step {step}: the gradient's norm is {norm.item()}; {self.fix}")
        if config.clip_norm is not None:
            clip_grads_with_norm_(parameters, config.clip_norm, norm)
        return norm

    def _check_losses(self, losses: dict[str, Tensor], targets: Sequence[Targets | Tensor]) -> None:
        """Raise RefineError in all processes if the loss of one is not finite; the others would hang otherwise."""
        finite = math.isfinite(losses["loss"].item())
        (broken,) = self.group.any(not finite)
        if not broken:
            return
        step = self.learner.progress.step
        if finite:
            raise RefineError(f"step {step}: the loss of another process is not finite; see its message")
        terms = ", ".join(f"{k} = {v.item():.4g}" for k, v in losses.items() if k != "loss")
        images = ", ".join(t.file_name or str(t.image_id) for t in targets if isinstance(t, Targets))
        where = f" on the images {images}" if images else ""
        raise RefineError(f"step {step}: the loss is not finite ({terms}){where}; {self.fix}")


def train_mode(model: nn.Module) -> None:
    """Set training mode, except for completely frozen parts, whose statistics must not change."""
    model.train()
    for part in model.children():
        if not any(parameter.requires_grad for parameter in part.parameters()):
            part.eval()


def derive_seed(*parts: int) -> int:
    """Return a seed, 0..2^63-1, that depends on all parts (seed, step, …)."""
    return random.Random("/".join(map(str, parts))).getrandbits(63)


def _fix(config: RunConfig) -> str:
    optim = config.optim
    return (
        f"lower optim.lr ({optim.lr}), lengthen optim.warmup_steps ({optim.warmup_steps}), set "
        f"optim.clip_norm ({optim.clip_norm}) or use optim.precision 32 (now {optim.precision}), then "
        f"--resume from the last checkpoint in {config.out}"
    )


def too_large(config: RunConfig, processes: int) -> RefineError:
    """Return the error for an update that does not fit into memory; it names the fields to change."""
    optim, augment = config.optim, config.augment
    images = optim.batch_size // (processes * optim.accumulate)
    ways = []
    if images > 1:
        ways.append(f"increase optim.accumulate (now {optim.accumulate}), the number of parts of a batch")
        ways.append(f"lower optim.batch_size (now {optim.batch_size})")
    if augment.crop is None:
        ways.append(f"lower augment.short (now {augment.short}) and augment.long (now {augment.long})")
    else:
        ways.append(f"lower augment.crop (now {list(augment.crop)})")
    if optim.precision == "32":
        ways.append("set optim.precision to bf16")
    return RefineError(f"not enough memory for an update, with images at a time: {images}; {', or '.join(ways)}")
