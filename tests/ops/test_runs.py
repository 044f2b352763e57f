"""Runs against loops over pixels; the ways for the CPU and for other devices give the same."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refine.ops.runs import flatnonzero, run_lengths, run_starts, run_sums, spread


class Elsewhere(torch.Tensor):
    """Lies on the CPU, but says that it does not."""

    device = property(lambda _: SimpleNamespace(type="elsewhere"))  # type: ignore[assignment]


@pytest.fixture(params=["cpu", "elsewhere"])
def place(request):
    return (lambda t: t) if request.param == "cpu" else (lambda t: t.as_subclass(Elsewhere))


@pytest.mark.parametrize("share", [0, 0.001, 0.02, 0.5, 1])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (8,), (9,), (3, 5), (64, 65), (4, 30, 31)])
def test_flatnonzero(place, shape, share):
    mask = torch.rand(shape) < share
    assert flatnonzero(place(mask)).tolist() == [n for n, v in enumerate(mask.flatten().tolist()) if v]


def test_flatnonzero_of_a_view(place):
    mask = torch.rand(20, 30) < 0.1
    assert flatnonzero(place(mask.T)).tolist() == torch.nonzero(mask.T.flatten())[:, 0].tolist()


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_starts_and_lengths(data):
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


def test_sums_and_spread_are_inverse(place):
    values = torch.randn(9, 14)
    starts = run_starts(torch.randint(0, 2, (9, 14)))
    edges = [*starts.tolist(), 9 * 14]
    expected = [values.flatten()[a:b].sum() for a, b in itertools.pairwise(edges)]
    sums = run_sums(place(values), starts)
    torch.testing.assert_close(sums.as_subclass(torch.Tensor), torch.stack(expected).double(), atol=1e-5, rtol=0)
    lengths = run_lengths(starts, 9 * 14)
    shown = spread(place(torch.arange(len(starts))), lengths, (9, 14))
    shown = shown.as_subclass(torch.Tensor)
    assert shown.flatten()[starts].tolist() == list(range(len(starts)))
    assert torch.equal(shown.flatten().bincount(), lengths)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_not_summed_in_half_precision(place, dtype):
    values = torch.full((80, 100), 0.5, dtype=dtype)
    sums = run_sums(place(values), torch.tensor([0, 7000]))
    assert sums.tolist() == [3500, 500]
