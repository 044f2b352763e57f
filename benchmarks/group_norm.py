"""CPU time of GroupNorm on the maps of boxes, in channels-last and contiguous layout, with a convolution after it.

    OMP_NUM_THREADS=1 python benchmarks/group_norm.py

The two layouts run in turns.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from turns import take_turns

from refine.experiments.machine import describe_machine

SHAPES = ((14, 64, 14, 14), (12, 128, 14, 14), (29, 256, 14, 14), (1000, 64, 7, 7), (1000, 256, 7, 7))
GROUPS, ROUNDS, REPEATS = 32, 5, 3


@torch.no_grad()
def run(x: Tensor, weight: Tensor, conv: nn.Module, contiguous: bool) -> None:
    for _ in range(REPEATS):
        conv(F.group_norm(x.contiguous() if contiguous else x, GROUPS, weight, weight))


def main() -> None:
    print(describe_machine(torch.device("cpu")))
    print(f"{'shape':22} {'':8} {'ms':>7} {'contiguous ms':>14} {'ratio':>6}")
    for shape in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.randn(shape).to(dtype).to(memory_format=torch.channels_last)
            conv = nn.Conv2d(shape[1], shape[1], 3, padding=1).to(dtype).to(memory_format=torch.channels_last)
            weight = torch.rand(shape[1]).to(dtype)
            runs = {
                layout: partial(run, x, weight, conv, layout == "contiguous") for layout in ("as is", "contiguous")
            }
            times = take_turns(runs, ROUNDS)
            ms = [1000 * times[layout]["cpu_s"] / REPEATS for layout in runs]
            name = str(dtype).removeprefix("torch.")
            print(f"{shape!s:22} {name:8} {ms[0]:7.2f} {ms[1]:14.2f} {ms[1] / ms[0]:6.2f}")


if __name__ == "__main__":
    main()
