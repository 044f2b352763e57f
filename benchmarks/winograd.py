"""Speed of 3 × 3 convolutions by Winograd's algorithm, as `refine.modeling.winograd` uses them, on a CPU.

    OMP_NUM_THREADS=1 python benchmarks/winograd.py

For each size the direct convolution of PyTorch and that of refine run in turns, with maps in contiguous and
channels-last layout. NNPACK takes and returns contiguous maps, so a channels-last map is converted first. Reported
are medians of the CPU time and their ratio, the largest difference of both to the exact outputs (in double
precision, in units of the largest output), and a star where refine uses NNPACK; elsewhere both are the same.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from refine.modeling.winograd import use_winograd
from refine.runtime import prepare_cpu

SIZES = [(1, 12, 18), (1, 24, 36), (1, 48, 72), (1, 96, 144), (1, 200, 336)]
SIZES += [(4, 14, 14), (8, 14, 14), (30, 14, 14), (100, 14, 14), (100, 7, 7), (1000, 7, 7)]


@torch.no_grad()
def measure(channels: int, size: tuple[int, int, int], layout: torch.memory_format, rounds: int) -> list[str]:
    """Return the milliseconds of both, their ratio, the largest errors, and whether NNPACK is used."""
    count, height, width = size
    conv = nn.Conv2d(channels, channels, 3, padding=1).to(memory_format=layout)
    other = copy.deepcopy(conv)
    use_winograd(other)
    x = torch.randn(count, channels, height, width).relu().to(memory_format=layout)
    runs: list[Callable[[], Tensor]] = [lambda: conv(x), lambda: other(x)]
    times: list[list[float]] = [[], []]
    for _ in range(rounds + 1):
        for run, seconds in zip(runs, times, strict=True):
            began = time.process_time()
            run()
            seconds.append(1000 * (time.process_time() - began))
    exact = F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1)
    errors = (float((run() - exact).abs().max() / exact.abs().max()) for run in runs)
    direct, faster = (statistics.median(seconds[1:]) for seconds in times)
    chosen = not torch.equal(conv(x), other(x))
    return [f"{direct:.2f}", f"{faster:.2f}", f"{faster / direct:.2f}", *(f"{e:.0e}" for e in errors), "*" * chosen]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, nargs="+", default=[32, 64, 96, 128, 256])
    parser.add_argument("--rounds", type=int, default=5, help="(default: 5)")
    options = parser.parse_args()
    prepare_cpu(None)
    torch.manual_seed(0)
    if not torch._nnpack_available():
        parser.error("this PyTorch has no NNPACK")
    table = Table("channels", "size", "layout", "direct ms", "refine ms", "ratio", "error", "error", "chosen")
    for channels in options.channels:
        for size in SIZES:
            for name, layout in (("contiguous", torch.contiguous_format), ("channels-last", torch.channels_last)):
                row = measure(channels, size, layout, options.rounds)
                table.add_row(str(channels), " × ".join(map(str, size)), name, *row)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
