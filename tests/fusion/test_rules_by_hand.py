"""Tests of every fusion rule on hand-drawn masks and edge cases."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from helpers.scenes import CATEGORIES, SMALL, STUFF, THINGS, drawn, of_masks, shown

from refine.fusion import FusionConfig, Method, fuse
from refine.structures import VOID, Instances

METHODS = get_args(Method)
LEARNED = ("ocfusion", "strong", "soe")
NO_STUFF = torch.full((4, 6), VOID)


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


def test_duplicates_are_fused_with_the_mean_of_their_occlusion():
    masks = drawn("####.. ####.. ####.. ####..", "####.. ####.. ####.. ####..", "..#### ..#### ..#### ..####")
    instances = of_masks(masks, [0.8, 0.8, 0.9])
    occlusion = torch.tensor([[0.5, 0.5, 0.9], [0.5, 0.5, 0.3], [0.1, 0.8, 0.5]])  # first in front, second behind
    result = fuse(instances, None, categories=CATEGORIES, method="strong", occlusion=occlusion, config=SMALL)
    assert (shown(result)[:, 2:4] == 0).all()  # (.9 + .3) / 2 > (.1 + .8) / 2
    occlusion[2, 0] = 0.5
    result = fuse(instances, None, categories=CATEGORIES, method="strong", occlusion=occlusion, config=SMALL)
    assert (shown(result)[:, 2:4] == 2).all()  # (.9 + .3) / 2 < (.5 + .8) / 2
