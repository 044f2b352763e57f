"""Tests of every fusion rule against slow references, hand-drawn masks and invariants."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from helpers.fusion_reference import fuse_slowly
from helpers.scenes import CATEGORIES, SMALL, STUFF, THINGS, drawn, of_masks, scene, shown
from hypothesis import given, settings
from hypothesis import strategies as st

from refine.fusion import FusionConfig, Method, fuse
from refine.structures import VOID, Instances

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


def test_duplicates_are_fused_with_the_mean_of_their_occlusion():
    masks = drawn("####.. ####.. ####.. ####..", "####.. ####.. ####.. ####..", "..#### ..#### ..#### ..####")
    instances = of_masks(masks, [0.8, 0.8, 0.9])
    occlusion = torch.tensor([[0.5, 0.5, 0.9], [0.5, 0.5, 0.3], [0.1, 0.8, 0.5]])  # first in front, second behind
    result = fuse(instances, None, categories=CATEGORIES, method="strong", occlusion=occlusion, config=SMALL)
    assert (shown(result)[:, 2:4] == 0).all()  # (.9 + .3) / 2 > (.1 + .8) / 2
    occlusion[2, 0] = 0.5
    result = fuse(instances, None, categories=CATEGORIES, method="strong", occlusion=occlusion, config=SMALL)
    assert (shown(result)[:, 2:4] == 2).all()  # (.9 + .3) / 2 < (.5 + .8) / 2


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


# ---- hand-drawn masks


@pytest.mark.parametrize("method", LEARNED)
def test_a_small_instance_in_front_of_a_larger_surer_one(method):
    masks = drawn("###### ###### ###### ######", "...... .##... .##... ......")
    instances = of_masks(masks, [0.9, 0.8])
    occlusion = torch.tensor([[0.5, 0.05], [0.95, 0.5]])
    arguments = {"categories": CATEGORIES, "config": SMALL, "occlusion": occlusion}
    # Score order drops the small instance; the learned order shows both.
    assert set(shown(fuse(instances, NO_STUFF, method="heuristic", **arguments)).flat) == {0}
    expected = np.where(masks[1].numpy(), 1, 0)
    np.testing.assert_array_equal(shown(fuse(instances, NO_STUFF, method=method, **arguments)), expected)
    np.testing.assert_array_equal(shown(fuse(instances, NO_STUFF, method="shr", **arguments)), expected)


def test_soft_scores_drop_what_is_surely_behind():
    """Of the second one, .8 · exp(−(.05 − 1)² / 2.5) = .558 is left, though two thirds of it are seen."""
    instances = of_masks(drawn("####.. ####.. ####.. ####..", "...### ...### ...### ...###"), [0.9, 0.8])
    occlusion = torch.tensor([[0.5, 0.95], [0.05, 0.5]])
    for soft, threshold, seen in ((True, 0.55, {0, 1}), (True, 0.56, {0, -1}), (False, 0.56, {0, 1})):
        config = replace(SMALL, soft_scores=soft, score_threshold=threshold)
        arguments = {"categories": CATEGORIES, "occlusion": occlusion, "config": config}
        assert set(shown(fuse(instances, NO_STUFF, method="soe", **arguments)).flat) == seen
        assert set(shown(fuse(instances, NO_STUFF, method="strong", **arguments)).flat) == {0, 1}


def test_pairs_below_the_overlap_are_ordered_by_score():
    masks = drawn("####.. ####.. ####.. ......", "...... ...... ...### ...###")
    # They share 1 of 12 and 1 of 6 pixels: 0.083 and 0.167.
    arguments = {
        "categories": CATEGORIES,
        "method": "ocfusion",
        "occlusion": torch.tensor([[0.0, 0.0], [1.0, 0.0]]),
    }
    for share, winner in ((0.2, 0), (0.16, 1)):
        config = replace(SMALL, pair_overlap=share)
        result = fuse(of_masks(masks, [0.9, 0.8]), NO_STUFF, config=config, **arguments)
        assert shown(result)[2, 3] == winner


@pytest.mark.parametrize("resolve", ["steal", "wins"])
@pytest.mark.parametrize("direction", [0, 1])
def test_three_in_a_cycle(direction, resolve):
    # a over b, b over c, c over a; each pair shares two columns, and no column is shared by all three.
    masks = drawn(
        "####.. ####.. #..... #.....",
        "..#### ..#### .....# .....#",
        "##..## ##..## ...... ######",
    )
    front = torch.tensor([[0.5, 0.9, 0.1], [0.1, 0.5, 0.9], [0.9, 0.1, 0.5]])
    result = fuse(
        of_masks(masks, [0.9, 0.8, 0.7]),
        NO_STUFF,
        categories=CATEGORIES,
        method="ocfusion",
        occlusion=front.T if direction else front,
        config=replace(SMALL, resolve=resolve, overlap_threshold=0.7, pair_overlap=0.1),
    )
    winners = [[0, 1, 2], [1, 2, 0]][direction]  # of the columns shared by 0 and 1, 1 and 2, 2 and 0
    if resolve == "wins":  # one win each: score order
        winners = [0, 1, 0]
    top = shown(result)[:2]
    for columns, winner in zip((slice(2, 4), slice(4, 6), slice(0, 2)), winners, strict=True):
        assert (top[:, columns] == winner).all()


def test_fragments_remain_only_without_recheck():
    # Two later instances in front of the first one leave it one third of its columns.
    masks = drawn("###### ###### ###### ######", "##.... ##.... ##.... ##....", "..##.. ..##.. ..##.. ..##..")
    occlusion = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    for recheck, seen in ((False, {0, 1, 2}), (True, {1, 2, -1})):
        result = fuse(
            of_masks(masks, [0.9, 0.8, 0.7]),
            NO_STUFF,
            categories=CATEGORIES,
            method="ocfusion",
            occlusion=occlusion,
            config=replace(SMALL, recheck=recheck),
        )
        assert set(shown(result).flat) == seen


def test_equal_scores_are_sorted_by_area_class_and_pixels():
    left, right = "####.. ####.. ####.. ####..", "..#### ..#### ..#### ..####"
    config = replace(SMALL, overlap_threshold=0.6)
    for masks, labels, winner in (
        (drawn("..###. ..###. ..###. ..###.", left), [0, 0], 1),  # the larger
        (drawn(left, right), [1, 0], 1),  # the first class
        (drawn(right, left), [0, 0], 1),  # the first pixel
    ):
        instances = of_masks(masks, [0.5, 0.5], labels)
        result = fuse(instances, NO_STUFF, categories=CATEGORIES, config=config)
        assert (shown(result)[:, 2:4] == winner).all()


@pytest.mark.parametrize("method", METHODS)
def test_identical_instances(method):
    mask = drawn("###### ###### ...... ......")
    result = fuse(
        of_masks(mask.repeat(3, 1, 1), [0.5] * 3),
        NO_STUFF,
        categories=CATEGORIES,
        method=method,
        occlusion=torch.full((3, 3), 0.5),
        ranking=torch.ones(3),
        config=SMALL,
    )
    assert [s.area for s in result.segments] == [12]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [0, 1])
def test_zero_and_one_instance(method, count):
    # Rows 0 and 1 show a thing class (void without an instance), rows 2 and 3 stuff of 12 pixels.
    sem_seg = torch.tensor([[0] * 6, [0] * 6, [4] * 6, [4] * 6])
    instances = of_masks(drawn("###... ###... ###... ......"), [0.9]) if count else Instances.empty((4, 6))
    config = replace(SMALL, stuff_area=9)
    more = {"occlusion": torch.zeros(count, count), "ranking": torch.zeros(count)}
    result = fuse(instances, sem_seg, categories=CATEGORIES, method=method, config=config, **more)
    assert [(s.isthing, s.area, s.instance) for s in result.segments] == [(True, 9, 0)] * count + [
        (False, 12 - 3 * count, None)
    ]
    assert (result.segment_ids == 0).sum() == 12 - 6 * count
    assert result.segments[-1].score is None  # no confidence was given


def test_stuff_area_counts_free_pixels():
    sem_seg = torch.full((4, 6), THINGS)
    instances = of_masks(drawn("###... ###... ###... ......"), [0.9])
    for area, kept in ((15, 1), (16, 0)):
        result = fuse(instances, sem_seg, categories=CATEGORIES, config=FusionConfig(stuff_area=area))
        assert [s.area for s in result.segments] == [9, 15][: 1 + kept]


@pytest.mark.parametrize("method", METHODS)
def test_five_hundred_instances(method):
    """Boxes of typical COCO size on 480 × 640 pixels; about 10,000 pairs overlap."""
    g = torch.Generator().manual_seed(0)
    corner = torch.rand(500, 2, generator=g) * torch.tensor([560.0, 400.0])
    boxes = torch.cat([corner, corner + 10 + 110 * torch.rand(500, 2, generator=g)], 1)
    instances = Instances(
        (480, 640),
        boxes=boxes,
        scores=torch.rand(500, generator=g) / 2 + 0.5,
        labels=torch.randint(0, THINGS, (500,), generator=g),
        roi_masks=torch.rand(500, 7, 7, generator=g) * 0.6 + 0.4,
    )
    result = fuse(
        instances,
        torch.randint(-1, THINGS + STUFF, (480, 640), generator=g),
        categories=CATEGORIES,
        method=method,
        occlusion=torch.rand(500, 500, generator=g),
        ranking=torch.rand(500, generator=g),
    )
    assert len(result) > 50
