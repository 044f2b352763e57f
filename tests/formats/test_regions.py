"""Regions of a map, against a loop over its values."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from refine.formats.regions import Regions
from refine.formats.runs import Runs


@settings(deadline=None, max_examples=60)
@given(arrays(np.int32, st.tuples(st.integers(1, 7), st.integers(1, 7)), elements=st.integers(0, 5)))
def test_regions_equal_a_loop_over_values(ids: np.ndarray) -> None:
    regions = Regions.of(Runs.from_map(ids))
    assert regions.values.tolist() == sorted(set(ids.ravel().tolist()))
    for value, area, box in zip(regions.values, regions.area, regions.boxes.tolist(), strict=True):
        ys, xs = np.nonzero(ids == value)
        assert area == len(ys)
        assert box == [xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1]
    np.testing.assert_array_equal(regions.runs.spread(regions.values[regions.index]), ids)
