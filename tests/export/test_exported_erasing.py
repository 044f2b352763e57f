"""Unknown Erasing of exported models against that of `refine.fuse`, on random label maps."""

import torch

from refine.export.unknown import Runs, is_unknown
from refine.fusion.unknown import erase_unknown
from refine.ops.runs import run_lengths, run_starts, run_sums, spread


def _random_case(seed: int):
    g = torch.Generator().manual_seed(seed)
    height, width = torch.randint(1, 40, (2,), generator=g).tolist()
    cell = 1 + 2 * (seed % 2)
    rows, columns = -(-height // cell), -(-width // cell)
    labels = torch.randint(-1, 6, (rows, columns), generator=g)
    labels = labels.repeat_interleave(cell, 0)[:height].repeat_interleave(cell, 1)[:, :width]
    if seed % 3 == 0:  # few pixels, far apart
        labels = torch.where(torch.rand(height, width, generator=g) < 0.85, -1, labels)
    return labels, torch.rand(height, width, generator=g), int(torch.randint(0, 6, (), generator=g))


def test_unknown_regions_are_those_of_fusion():
    erased_in_all = 0
    for seed in range(60):
        labels, confidence, radius = _random_case(seed)
        height, width = labels.shape
        starts = run_starts(labels, width=2 * radius + 1)
        lengths = run_lengths(starts, labels.numel())
        runs = Runs(
            starts // width, starts % width, lengths, labels.flatten()[starts], run_sums(confidence, starts)
        )
        threshold, reach = torch.tensor(0.5, dtype=torch.float64), torch.tensor(2 * radius + 1)
        unknown = is_unknown(runs, (height, width), reach, threshold, 2, 6)
        erased = torch.where(spread(unknown, lengths, (height, width)), -1, labels)
        expected = erase_unknown(labels, confidence, radius, 0.5, 2)
        assert torch.equal(erased, expected), f"seed {seed}"
        erased_in_all += int((expected != labels).sum())
    assert erased_in_all > 1000
