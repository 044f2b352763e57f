"""Instances with full masks in their boxes, and their ground truth, in which they contest pixels."""

import torch

from refine.structures import Instances, Targets

SIZE, THINGS, CHANNELS = (40, 40), 3, 5


def make_instances(boxes, labels, seed=0) -> Instances:
    """Return instances with full masks in their boxes and random features."""
    generator = torch.Generator().manual_seed(seed)
    n = len(boxes)
    return Instances(
        SIZE,
        torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        torch.full((n,), 0.9),
        torch.tensor(labels, dtype=torch.int64),
        roi_masks=torch.ones(n, 28, 28),
        features=torch.randn(n, CHANNELS, 14, 14, generator=generator),
    )


def make_targets(painted, labels, iscrowd=None) -> Targets:
    """Return targets with boxes painted one over another (None is skipped), the last in front, on class 3."""
    index = torch.zeros(SIZE, dtype=torch.int32)
    for k, (x1, y1, x2, y2) in enumerate(painted):
        index[y1:y2, x1:x2] = k + 1
    crowd = torch.tensor([False, *(iscrowd or [False] * len(painted))])
    return Targets.from_panoptic(index, torch.tensor([THINGS, *labels]), crowd, THINGS)


BACK, FRONT = [0, 0, 24, 24], [12, 12, 36, 36]
