"""A result that is hard to save: holes, objects of several parts, touching corners, names to escape."""

import numpy as np
import torch

from refine.structures import Categories, Category, PanopticResult, Segment

HEIGHT, WIDTH = 40, 52
CATEGORIES = Categories(
    [Category(7, "cell <a>", True, (200, 40, 40)), Category(0, "debris", True), Category(9, "ground", False)]
)


def make_result(offset: int = 0) -> PanopticResult:
    """Return a result whose segments have holes, several parts and touching corners; `offset` is added to ids."""
    rng = np.random.default_rng(3)
    ids = np.zeros((HEIGHT, WIDTH), np.int32)
    ids[25:] = 5
    y, x = np.indices(ids.shape)
    ids[(y - 14) ** 2 + (x - 15) ** 2 < 150] = 1
    ids[(y - 14) ** 2 + (x - 15) ** 2 < 20] = 0  # a hole
    ids[rng.random(ids.shape) < 0.1] = 2  # many parts
    ids[0, 0] = ids[1, 1] = ids[-1, -1] = 3
    ids[30:32, 30:40] = 4
    segments = []
    for number, category, score in ((1, 7, 0.9), (2, 0, 0.8), (3, 7, 0.75), (4, 7, 1.0), (5, 9, None)):
        r, c = np.nonzero(ids == number)
        box = tuple(int(v) for v in (c.min(), r.min(), np.ptp(c) + 1, np.ptp(r) + 1))
        isthing = category != 9
        segments.append(
            Segment(number + offset, category, isthing, score, len(r), box, number if isthing else None)
        )
    ids[ids > 0] += offset
    return PanopticResult(torch.from_numpy(ids), segments, CATEGORIES)
