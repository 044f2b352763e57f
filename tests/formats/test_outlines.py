"""Outlines, checked by shapely: valid polygons that contain exactly the centres of the mask's pixels."""

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from refine.formats.outlines import outlines


def polygons(mask):
    return [shapely.Polygon(rings[0], rings[1:]) for rings in outlines(mask)]


def check(mask):
    found = polygons(mask)
    y, x = np.indices(mask.shape) + 0.5
    inside = sum((shapely.contains_xy(polygon, x, y).astype(int) for polygon in found), np.zeros(mask.shape, int))
    assert np.array_equal(inside, mask)
    whole = shapely.MultiPolygon(found)
    assert whole.is_valid, shapely.is_valid_reason(whole)
    assert whole.area == mask.sum()
    boxes = [shapely.box(c, r, c + 1, r + 1) for r, c in np.argwhere(mask)]
    assert shapely.union_all(boxes).equals(whole)
    assert all(p.exterior.is_ccw and not any(hole.is_ccw for hole in p.interiors) for p in found)
    return found


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1), st.floats(0.1, 0.9))
def test_outlines_of_random_masks_fill_to_the_same_pixels(height, width, seed, share):
    check(np.random.default_rng(seed).random((height, width)) < share)


@pytest.mark.parametrize(
    ("rows", "holes"),
    [
        (["#"], [0]),
        (["#.", ".#"], [0, 0]),  # two components that touch at a corner
        (["###", "#.#", "###"], [1]),
        (["###", "#.#", "##."], [1]),  # the hole touches the outer ring at a corner
        (["####", "#.##", "##.#", "####"], [2]),  # two holes that touch
        (["#####", "#...#", "#.#.#", "#...#", "#####"], [1, 0]),
    ],
)
def test_holes_and_corners(rows, holes):
    found = check(np.array([[c == "#" for c in row] for row in rows]))
    assert [len(polygon.interiors) for polygon in found] == holes


def test_straight_sides_have_corners_alone():
    assert outlines(np.ones((300, 400), bool))[0][0].tolist() in (
        [[0, 0], [400, 0], [400, 300], [0, 300]],
        [[400, 0], [400, 300], [0, 300], [0, 0]],
    )
