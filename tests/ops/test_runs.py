"""Tests of runs against loops over pixels, both for the CPU version and for that of other devices."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refine.ops.runs import flatnonzero, run_lengths, run_starts, run_sums, spread


class OtherDevice(torch.Tensor):
    """CPU tensor that reports another device, to select the code for GPUs."""

    device = property(lambda _: SimpleNamespace(type="other"))  # type: ignore[assignment]


@pytest.fixture(params=["cpu", "other"])
def move(request):
    return (lambda t: t) if request.param == "cpu" else (lambda t: t.as_subclass(OtherDevice))


@pytest.mark.parametrize("share", [0, 0.001, 0.02, 0.5, 1])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (8,), (9,), (3, 5), (64, 65), (4, 30, 31)])
def test_flatnonzero(move, shape, share):
    mask = torch.rand(shape) < share
    assert flatnonzero(move(mask)).tolist() == [n for n, v in enumerate(mask.flatten().tolist()) if v]


def test_flatnonzero_of_a_view(move):
    mask = torch.rand(20, 30) < 0.1
    assert flatnonzero(move(mask.T)).tolist() == torch.nonzero(mask.T.flatten())[:, 0].tolist()


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_run_starts_and_lengths(data):
    height, width = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 12))
    labels = torch.tensor(data.draw(st.lists(st.integers(-1, 1), min_size=height * width, max_size=height * width)))
    cuts = data.draw(st.none() | st.lists(st.integers(0, height * width - 1), max_size=3))
    band = data.draw(st.none() | st.integers(1, 13))
    starts = run_starts(labels.view(height, width), None if cuts is None else torch.tensor(cuts).long(), band)
    expected = [
        n
        for n in range(height * width)
        if n % width % (band or width) == 0 or labels[n] != labels[n - 1] or n in (cuts or [])
    ]
    assert starts.tolist() == expected
    ends = [*expected[1:], height * width]
    assert run_lengths(starts, height * width).tolist() == [b - a for a, b in zip(expected, ends, strict=True)]


def test_run_sums_and_spread(move):
    values = torch.randn(9, 14)
    starts = run_starts(torch.randint(0, 2, (9, 14)))
    edges = [*starts.tolist(), 9 * 14]
    expected = [values.flatten()[a:b].sum() for a, b in itertools.pairwise(edges)]
    sums = run_sums(move(values), starts)
    torch.testing.assert_close(sums.as_subclass(torch.Tensor), torch.stack(expected).double(), atol=1e-5, rtol=0)
    lengths = run_lengths(starts, 9 * 14)
    run_map = spread(move(torch.arange(len(starts))), lengths, (9, 14))
    run_map = run_map.as_subclass(torch.Tensor)
    assert run_map.flatten()[starts].tolist() == list(range(len(starts)))
    assert torch.equal(run_map.flatten().bincount(), lengths)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_not_summed_in_half_precision(move, dtype):
    values = torch.full((80, 100), 0.5, dtype=dtype)
    sums = run_sums(move(values), torch.tensor([0, 7000]))
    assert sums.tolist() == [3500, 500]
