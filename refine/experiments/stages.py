"""Where a forward pass spends its time and arithmetic, stage by stage."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch.utils.flop_counter import FlopCounterMode

from refine.fusion.config import Head
from refine.modeling.model import PanopticModel

ASKED = get_args(Head)
"""Heads that fusion uses, which are stages of their own."""


@dataclass
class Stage:
    """Totals of one stage over all its calls.

    Attributes:
        seconds: wall time.
        gflops: 10⁹ floating-point operations of convolutions and matrix products (two per multiply-add).
    """

    seconds: float = 0.0
    gflops: float = 0.0


@contextmanager
def profile_stages(model: PanopticModel, count_flops: bool = False) -> Iterator[dict[str, Stage]]:
    """Record the stages of every `model.predict` inside the context.

    The stages do not overlap; on a GPU each waits for its kernels, which costs a little of the overlap
    between them.

    Args:
        model: to watch; it is left as it was.
        count_flops: count arithmetic too (slow: not together with timing).

    Yields:
        Stages by name in the order of their first call, filled while the context is open.
    """
    stages: dict[str, Stage] = defaultdict(Stage)
    counter = FlopCounterMode(display=False) if count_flops else None
    watched: list[tuple[Any, str, str]] = [
        (model.backbone, "forward", "backbone"),
        (model.fpn, "forward", "fpn"),
        (model.semantic_head, "features", "semantic head"),
        (model.semantic_head, "forward", "semantic head"),
        (model.ibpp, "boxes", "roi features"),
        (model.ibpp, "instance_step", "masks"),
        (model.ibpp, "semantic_step", "semantics"),
    ]
    if model.detector is None:
        watched += [(model.rpn, "forward", "rpn"), (model.rpn, "propose", "rpn")]
        watched.append((model.box_heads, "predict", "box heads"))
    else:
        watched += [(model.detector, "forward", "detector"), (model.detector, "detect", "detector")]
    # The first convolutions and the last one run outside the steps that they belong to; without IBPP, inside.
    last = model.config.ibpp.iterations
    for t, head in enumerate(model.ibpp.mask_heads if last else [], 1):
        watched.append((head.from_features, "forward", _numbered("masks", t, last)))
    for t, head in enumerate(model.ibpp.semantic_heads, 1):
        watched.append((head.from_features, "forward", _numbered("semantics", t, last)))
        of = t if model.config.ibpp.residual else last
        watched.append((head.predictor, "forward", _numbered("semantics", of, last)))
    watched += [(getattr(model, name), "predict", name) for name in ASKED if getattr(model, name) is not None]
    recorder = _Recorder(stages, counter, last)
    try:
        for owner, method, name in watched:
            setattr(owner, method, recorder.wrap(getattr(owner, method), name))
        with counter or nullcontext():
            yield stages
    finally:
        for owner, method, _ in watched:
            owner.__dict__.pop(method, None)


@dataclass
class _Recorder:
    """Records calls under the names of their stages; what a recorded call itself calls counts as its own.

    Attributes:
        stages: totals by name.
        counter: of arithmetic, or None.
        last: T; the steps of the iterations have t as their first argument.
        busy: a recorded call is running.
    """

    stages: dict[str, Stage]
    counter: FlopCounterMode | None
    last: int
    busy: bool = False

    def wrap(self, call: Callable, name: str) -> Callable:
        def recorded(*args: Any, **kwargs: Any) -> Any:
            if self.busy:
                return call(*args, **kwargs)
            self.busy = True
            step = args and isinstance(args[0], int)
            stage = self.stages[_numbered(name, args[0], self.last) if step else name]
            flops, start = self._flops(), _now()
            result = call(*args, **kwargs)
            stage.seconds += _now() - start
            stage.gflops += (self._flops() - flops) / 1e9
            self.busy = False
            return result

        return recorded

    def _flops(self) -> int:
        return self.counter.get_total_flops() if self.counter else 0


def _numbered(name: str, t: int, last: int) -> str:
    return f"{name} {t}" if last > 1 else name


def _now() -> float:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()
