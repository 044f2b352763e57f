"""Speed of the deformable convolutions of ResNet-101 at 800 × 1333 on the CPU: refine against torchvision.

    python benchmarks/deform.py --threads 1

Times one 3 × 3 layer of each stage, in the channels-last layout of the networks, forward and with gradients.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchvision.ops import deform_conv2d
from turns import take_turns

from refine.ops.deform import deform_conv

STAGES = {"res3": (128, 100, 167), "res4": (256, 50, 84), "res5": (512, 25, 42)}


def forward(convolve: Callable[..., Tensor], *inputs: Tensor) -> None:
    with torch.inference_mode():
        convolve(*inputs, padding=1)


def with_gradients(convolve: Callable[..., Tensor], *inputs: Tensor) -> None:
    leaves = [x.clone().requires_grad_() for x in inputs]
    convolve(*leaves, padding=1).sum().backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="(default: 5)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    table = Table("layer", "torchvision ms", "refine ms", "speed-up")
    for name, (channels, height, width) in STAGES.items():
        x = torch.randn(1, channels, height, width).contiguous(memory_format=torch.channels_last)
        inputs = (x, torch.randn(1, 18, height, width) / 2, torch.randn(channels, channels, 3, 3))
        for run in (forward, with_gradients):
            runs = {
                "refine": partial(run, deform_conv, *inputs),
                "torchvision": partial(run, deform_conv2d, *inputs),
            }
            numbers = take_turns(runs, options.rounds)
            fast, slow = (1000 * numbers[side]["wall_s"] for side in ("refine", "torchvision"))
            title = f"{name}, {run.__name__.replace('_', ' ')}"
            table.add_row(title, f"{slow:.0f}", f"{fast:.0f}", f"{slow / fast:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
