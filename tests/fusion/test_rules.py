"""Tests of every fusion rule against slow references and invariants."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from helpers.fusion_reference import fuse_slowly
from helpers.scenes import CATEGORIES, SMALL, THINGS, scene, shown
from hypothesis import given, settings
from hypothesis import strategies as st

from refine.fusion import Method
from refine.structures import VOID

METHODS = get_args(Method)
LEARNED = ("ocfusion", "strong", "soe")
NO_STUFF = torch.full((4, 6), VOID)


def against_reference(case, method, config):
    result = case.fuse(method, config)
    some = case.instances
    expected = fuse_slowly(
        some.masks.numpy(),
        some.scores.tolist(),
        some.labels.tolist(),
        some.boxes.tolist(),
        case.sem_seg.numpy(),
        THINGS,
        method,
        config,
        occlusion=case.occlusion.tolist(),
        ranking=case.ranking.tolist(),
        confidence=case.confidence.numpy(),
    )
    np.testing.assert_array_equal(shown(result), expected)
    return result


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(0, 12),
    overlap=st.sampled_from([0.0, 0.3, 0.5, 0.8, 1.0]),
    share=st.sampled_from([0.0, 0.2, 0.6]),
    recheck=st.booleans(),
    resolve=st.sampled_from(["steal", "wins"]),
    sigma=st.sampled_from([0.01, 0.3, 2.5, 50.0]),
    radius=st.sampled_from([None, 0, 60]),
)
def test_equals_the_reference(method, seed, count, overlap, share, recheck, resolve, sigma, radius):
    config = replace(
        SMALL,
        overlap_threshold=overlap,
        pair_overlap=share,
        recheck=recheck,
        resolve=resolve,
        sigma=sigma,
        unknown_erasing=radius is not None,
        ue_radius=radius or 0,  # of an image of 800 rows: 60 is 1 pixel here
    )
    against_reference(scene(seed, count), method, config)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), equal=st.booleans())
def test_order_of_the_instances_does_not_matter(method, seed, equal):
    case = scene(seed)
    if equal:
        case.instances.scores[:] = 0.5
    result = case.fuse(method)
    order = torch.randperm(len(case.instances), generator=torch.Generator().manual_seed(seed))
    shuffled = replace(
        case,
        instances=case.instances[order],
        occlusion=case.occlusion[order][:, order],
        ranking=case.ranking[order],
    )
    again = shuffled.fuse(method)
    assert torch.equal(again.segment_ids, result.segment_ids)
    places = [None if s.instance is None else int(order[s.instance]) for s in again.segments]
    named = [replace(s, instance=place) for s, place in zip(again.segments, places, strict=True)]
    assert named == result.segments


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), boxes=st.booleans())
def test_order_does_not_matter_with_duplicates(method, seed, boxes):
    """Instances have equal masks, classes and scores, equal or different boxes, and different O and ranking."""
    case = scene(seed)
    twice = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 2, 5, 5])
    g = torch.Generator().manual_seed(seed)
    some = case.instances[twice]
    if not boxes:
        some.boxes[8:] += torch.rand(3, 4, generator=g)
    doubled = replace(
        case, instances=some, occlusion=torch.rand(11, 11, generator=g), ranking=torch.rand(11, generator=g)
    )
    result = doubled.fuse(method)
    order = torch.randperm(11, generator=g)
    shuffled = replace(
        doubled,
        instances=some[order],
        occlusion=doubled.occlusion[order][:, order],
        ranking=doubled.ranking[order],
    ).fuse(method)
    assert torch.equal(shuffled.segment_ids, result.segment_ids)
    same = {8: 2, 9: 5, 10: 5} if boxes else {}
    places = [None if s.instance is None else int(order[s.instance]) for s in shuffled.segments]
    assert [same.get(p, p) for p in places] == [same.get(s.instance, s.instance) for s in result.segments]


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(0, 20), overlap=st.sampled_from([0.2, 0.5, 0.9]))
def test_invariants_of_every_result(method, seed, count, overlap):
    case = scene(seed, count)
    result = case.fuse(method, replace(SMALL, overlap_threshold=overlap, unknown_erasing=True))
    ids = result.segment_ids
    assert ids.dtype == torch.int32
    assert [s.id for s in result.segments] == list(range(1, len(result) + 1))
    assert sorted(set(ids.unique().tolist()) - {0}) == [s.id for s in result.segments]
    things = [s for s in result.segments if s.isthing]
    stuff = result.segments[len(things) :]
    assert [s.score for s in things] == sorted((s.score for s in things), reverse=True)
    assert [s.category_id for s in stuff] == sorted({s.category_id for s in stuff})
    for segment in result.segments:
        mask = result.mask(segment.id)
        rows, columns = torch.nonzero(mask).unbind(1)
        left, top = int(columns.min()), int(rows.min())
        assert segment.area == int(mask.sum())
        assert segment.bbox == (left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top)
        label = CATEGORIES.index(segment.category_id)
        if segment.isthing:
            whole = case.instances.masks[segment.instance]
            assert not (mask & ~whole).any()
            assert whole.sum() - segment.area <= overlap * whole.sum()
            assert segment.score == float(case.instances.scores[segment.instance]) >= SMALL.score_threshold
            assert label == int(case.instances.labels[segment.instance])
        else:
            assert segment.area >= SMALL.stuff_area
            assert bool((case.sem_seg[mask] == label).all())
            assert segment.score == pytest.approx(float(case.confidence[mask].double().mean()), abs=1e-6)
