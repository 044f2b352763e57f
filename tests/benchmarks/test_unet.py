"""Targets of the U-Net baseline, and conversion of probabilities to nuclei, on hand-made maps."""

import numpy as np
import pytest
import torch
from helpers.programs import program

from refine.structures import VOID, Categories, Category


@pytest.fixture(scope="module")
def unet():
    with program("unet") as module:
        yield module


def test_rims(unet):
    """Two nuclei touch at the image border; at the right there is a third one, and a void pixel."""
    drawn = [
        "1111222222....",
        "1111222222....",
        "1111222222.333",
        "1111222222.333",
        "1111222222.333",
        ".............x",
    ]
    owner = torch.tensor([[int(c) - 1 if c.isdigit() else -1 for c in line] for line in drawn])
    void = torch.tensor([[c == "x" for c in line] for line in drawn])
    classes = unet.rims(owner, void)
    assert ["".join({0: ".", 1: "i", 2: "r", VOID: "x"}[int(c)] for c in line) for line in classes] == [
        "iirrrriiir....",
        "iirrrriiir....",
        "iirrrriiir.rrr",
        "iirrrriiir.rii",
        "rrrrrrrrrr.rrr",
        ".............x",
    ]


def test_touching_discs_become_two_nuclei(unet):
    y, x = np.mgrid[:40, :64]
    discs = [np.hypot(y - 20, x - center) <= 13.5 for center in (20, 44)]
    assert (discs[0] & discs[1]).any()
    owner = np.where(discs[0], 0, np.where(discs[1], 1, -1))
    owner[2, 60] = 2  # noise, smaller than a nucleus
    classes = unet.rims(torch.from_numpy(owner), torch.zeros(40, 64, dtype=torch.bool)).numpy()
    probabilities = 0.05 + 0.85 * (classes == np.arange(3)[:, None, None])
    numbers = unet.Watershed(foreground=0.5, marker=0.5, smallest=8)(probabilities)
    assert numbers.max() == 2
    for disc in (owner == 0, owner == 1):
        found = numbers == np.bincount(numbers[disc]).argmax()
        assert (found & disc).sum() / (found | disc).sum() > 0.95

    categories = Categories([Category(1, "nucleus", True, (1, 2, 3)), Category(2, "back", False, (4, 5, 6))])
    result = unet.to_panoptic(numbers, (20, 32), categories)
    assert result.segment_ids.shape == (20, 32)
    assert [s.category_id for s in result.segments] == [1, 1, 2]
    assert sum(s.area for s in result.segments) == 20 * 32
