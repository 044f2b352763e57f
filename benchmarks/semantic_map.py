"""CPU time of the semantic map, for results of the network's own size and of other sizes.

    OMP_NUM_THREADS=1 python benchmarks/semantic_map.py

Logits are random and smooth: one value per 16 pixels in each direction, interpolated. A result that has one column
less than the network input takes the general way of `refine.ops.semantic`, one of the same size the short way.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from turns import take_turns

from refine.experiments.machine import describe_machine, name_machine
from refine.ops.semantic import semantic_map

Size = tuple[int, int]

CASES: tuple[tuple[int, Size, Size], ...] = (
    (133, (800, 1333), (800, 1333)),
    (133, (800, 1333), (800, 1332)),
    (133, (800, 1333), (427, 640)),
    (14, (320, 480), (320, 480)),
    (14, (320, 480), (320, 479)),
)
"""Number of classes, sizes of the network input and of the result, (height, width) in pixels."""


def smooth_logits(classes: int, size: Size) -> Tensor:
    """Return logits at stride 4 of an input padded to a multiple of 32."""
    padded = [-(-side // 32) * 8 for side in size]
    coarse = 4 * torch.randn(1, classes, *(-(-side // 4) + 1 for side in padded))
    return F.interpolate(coarse, size=padded, mode="bilinear")[0]


def main() -> None:
    torch.manual_seed(0)
    runs = {
        f"{classes} | {network} | {output}": partial(semantic_map, smooth_logits(classes, network), network, output)
        for classes, network, output in CASES
    }
    print("classes | network input | result | CPU ms")
    for name, times in take_turns(runs, rounds=5).items():
        print(f"{name} | {1000 * times['cpu_s']:.0f}")
    machine = describe_machine(torch.device("cpu"))
    threads = torch.get_num_threads()
    print(f"{name_machine(machine)}, torch {machine['torch']}, {threads} thread(s), {machine['date']}")


if __name__ == "__main__":
    main()
