"""Resizing in exported models against PyTorch's own."""

import pytest
import torch

from refine.data.resize import resize
from refine.export.resize import apply_weights, resize_weights

SIZES = [
    ((30, 40), (37, 50)),
    ((64, 64), (64, 64)),
    ((37, 41), (20, 22)),
    ((200, 300), (32, 48)),
    ((5, 700), (3, 128)),
    ((1, 9), (7, 63)),
]


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_resizing_equals_pytorch_bit_for_bit(old, new):
    image = torch.randint(0, 256, (3, *old), dtype=torch.uint8)
    weights = [
        resize_weights(
            torch.tensor(old[axis]),
            torch.tensor(new[axis]),
            torch.arange(new[axis] + 5, dtype=torch.float64),
            torch.arange(old[axis], dtype=torch.float64),
        )
        for axis in (0, 1)
    ]
    resized = apply_weights(image.float(), weights[0], weights[1])
    assert torch.equal(resized[:, : new[0], : new[1]], resize(image, new).float())
    assert not resized[:, new[0] :].any()
