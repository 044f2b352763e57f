"""Tests of the partition into cells against the mask membership of every pixel."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refine.ops.cells import cells_of
from refine.ops.masks import dense_runs


def random_masks(count: int, height: int, width: int, seed: int) -> torch.Tensor:
    """Return rectangles, some with random holes; a few masks are empty, a few are full: Tensor[N, H, W] bool."""
    g = torch.Generator().manual_seed(seed)
    masks = torch.zeros(count, height, width, dtype=torch.bool)
    for mask in masks:
        kind = int(torch.randint(0, 8, (1,), generator=g))
        y, x = (int(torch.randint(0, n, (1,), generator=g)) for n in (height, width))
        if kind < 6:
            mask[y : y + 1 + height // 2, x : x + 1 + width // 2] = True
            mask &= torch.rand(height, width, generator=g) < (1.0 if kind < 4 else 0.7)
        elif kind == 6:
            mask[:] = True
    return masks


@settings(max_examples=40, deadline=None)
@given(
    count=st.sampled_from([0, 1, 2, 3, 10, 63, 64, 65, 128, 130]),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_cells_equal_the_membership_of_pixels(count, height, width, seed):
    masks = random_masks(count, height, width, seed)
    cells = cells_of(dense_runs(masks))
    ends = torch.cat([cells.starts[1:], torch.tensor([height * width])])
    assert cells.starts[0] == 0
    of_pixel = cells.cell.repeat_interleave(ends - cells.starts)
    # The masks of a cell are those of each of its pixels, and no two cells have the same masks.
    assert torch.equal(cells.covers()[of_pixel].T, masks.flatten(1))
    assert len(cells.words.unique(dim=0)) == len(cells.words)
    assert torch.equal(cells.areas, of_pixel.bincount(minlength=len(cells.areas)))
    assert bool((cells.areas > 0).all())
    assert torch.equal(torch.stack(cells.members(), 1), cells.covers().T.nonzero())
    flat = masks.flatten(1).long()
    assert torch.equal(cells.intersections(), flat @ flat.T)


@pytest.mark.parametrize("chunk", [1, 3])
def test_intersections_are_summed_over_chunks(monkeypatch, chunk):
    monkeypatch.setattr("refine.ops.cells.CHUNK", chunk)
    masks = random_masks(5, 9, 9, seed=1)
    flat = masks.flatten(1).long()
    assert torch.equal(cells_of(dense_runs(masks)).intersections(), flat @ flat.T)
