"""Every rule of fusion against slow references, drawn pictures and what must hold of any result."""

import time
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from fusion_reference import fuse_slowly
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes import CATEGORIES, SMALL, STUFF, THINGS, drawn, of_masks, scene, shown

from refine.errors import RefineError
from refine.fusion import FusionConfig, Method, fuse
from refine.structures import VOID, Categories, Category, Instances

METHODS = get_args(Method)
PAIRWISE = ("shr", "ocfusion", "strong", "soe")
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
@given(seed=st.integers(0, 10_000), count=st.integers(0, 20), overlap=st.sampled_from([0.2, 0.5, 0.9]))
def test_what_holds_of_every_result(method, seed, count, overlap):
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


# ---- equation 7


@given(
    p=st.floats(0, 1),
    scores=st.tuples(st.floats(0.31, 1), st.floats(0.31, 1)),
    sigma=st.floats(0.05, 20),
)
@settings(max_examples=60, deadline=None)
def test_closed_form_of_equation_7(p, scores, sigma):
    """With O(j, i) = 1 − O(i, j) = 1 − p: i lies in front if p > ½ − (σ/2)·ln(s_i / s_j)."""
    masks = drawn("####.. ####.. ####.. ####..", "..#### ..#### ..#### ..####")
    scores = torch.tensor(scores)
    margin = p - 0.5 + sigma / 2 * float((scores[0].double() / scores[1].double()).log())
    if abs(margin) < 1e-5:
        return
    result = fuse(
        of_masks(masks, scores.tolist()),
        NO_STUFF,
        categories=CATEGORIES,
        method="soe",
        occlusion=torch.tensor([[0.0, p], [1 - p, 0.0]], dtype=torch.float64),
        config=replace(SMALL, sigma=sigma, overlap_threshold=0.6),
    )
    assert (shown(result)[:, 2:4] == (0 if margin > 0 else 1)).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_limits_of_sigma(seed):
    case = scene(seed)
    # σ → 0: the confidences do not matter. σ → ∞: nothing else does; pairwise and heuristic merges differ only
    # at exactly the overlap threshold, which no mask can meet at an irrational share.
    config = replace(SMALL, overlap_threshold=0.5**0.5)
    small = case.fuse("soe", replace(config, sigma=1e-9))
    assert torch.equal(small.segment_ids, case.fuse("ocfusion", config).segment_ids)
    large = case.fuse("soe", replace(config, sigma=1e9))
    assert torch.equal(large.segment_ids, case.fuse("heuristic", config).segment_ids)


def test_confidence_below_the_bound_never_wins():
    # s_i / s_j < e^(−1/σ), .67 at 2.5: even O(i, j) = 1, O(j, i) = 0 does not help i.
    masks = drawn("####.. ####.. ####.. ####..", "..#### ..#### ..#### ..####")
    occlusion = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    for score, winner in ((0.66, 0), (0.68, 1)):
        instances = of_masks(masks, [1.0, score])
        result = fuse(
            instances,
            NO_STUFF,
            categories=CATEGORIES,
            method="soe",
            occlusion=occlusion,
            config=replace(SMALL, overlap_threshold=0.6),
        )
        assert (shown(result)[:, 2:4] == winner).all()


# ---- drawn pictures


@pytest.mark.parametrize("method", LEARNED)
def test_a_kite_before_a_larger_surer_kite(method):
    masks = drawn("###### ###### ###### ######", "...... .##... .##... ......")
    instances = of_masks(masks, [0.9, 0.8])
    occlusion = torch.tensor([[0.5, 0.05], [0.95, 0.5]])
    arguments = {"categories": CATEGORIES, "config": SMALL, "occlusion": occlusion}
    # Score order loses the small one; the learned one shows both.
    assert set(shown(fuse(instances, NO_STUFF, method="heuristic", **arguments)).flat) == {0}
    expected = np.where(masks[1].numpy(), 1, 0)
    np.testing.assert_array_equal(shown(fuse(instances, NO_STUFF, method=method, **arguments)), expected)
    np.testing.assert_array_equal(shown(fuse(instances, NO_STUFF, method="shr", **arguments)), expected)


def test_pairs_that_hardly_overlap_keep_score_order():
    masks = drawn("####.. ####.. ####.. ......", "...... ...... ...### ...###")
    # They share 1 of 12 and 1 of 6 pixels: .083 and .167.
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
    # a over b, b over c, c over a; every pair shares two columns, and none shares one with both others.
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


def test_fragments_stay_only_without_recheck():
    # Two later ones in front of the first leave it one of three columns.
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


def test_equal_scores_by_area_class_and_pixels():
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
def test_twins(method):
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
def test_none_and_one(method, count):
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


def test_stuff_area_counts_what_instances_leave():
    sem_seg = torch.full((4, 6), THINGS)
    instances = of_masks(drawn("###... ###... ###... ......"), [0.9])
    for area, kept in ((15, 1), (16, 0)):
        result = fuse(instances, sem_seg, categories=CATEGORIES, config=FusionConfig(stuff_area=area))
        assert [s.area for s in result.segments] == [9, 15][: 1 + kept]


@pytest.mark.parametrize("method", METHODS)
def test_five_hundred_instances(method):
    """COCO's boxes on 480 × 640, all rules; some 10,000 pairs overlap."""
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
    begin = time.process_time()
    result = fuse(
        instances,
        torch.randint(-1, THINGS + STUFF, (480, 640), generator=g),
        categories=CATEGORIES,
        method=method,
        occlusion=torch.rand(500, 500, generator=g),
        ranking=torch.rand(500, generator=g),
    )
    assert time.process_time() - begin < 10
    assert len(result) > 50


# ---- as detectron2 merges


def combine(masks, scores, sem_seg, score_threshold=0.5, overlap_threshold=0.5, stuff_area=4096):
    """Kirillov's heuristic as detectron2 documents it: paste, mask by mask, then stuff, class by class.

    Class 0 of the semantic map is "things". Returns the map, and per segment (class of stuff or None, instance).
    """
    panoptic, segments = torch.zeros_like(sem_seg, dtype=torch.int64), []
    for n in torch.argsort(-scores).tolist():
        area, free = int(masks[n].sum()), masks[n] & (panoptic == 0)
        if scores[n] < score_threshold or not area or (area - int(free.sum())) / area > overlap_threshold:
            continue
        segments.append((None, n))
        panoptic[free] = len(segments)
    for label in sem_seg.unique().tolist():
        free = (sem_seg == label) & (panoptic == 0)
        if label and int(free.sum()) >= stuff_area:
            segments.append((label, None))
            panoptic[free] = len(segments)
    return panoptic, segments


@pytest.mark.parametrize("view", ["same_size", "resized"])
@pytest.mark.parametrize("model", ["panoptic_fpn_R_50", "panoptic_fpn_R_50_dconv_cascade_gn"])
def test_detectron2s_own_output_to_the_pixel(shared_dir, model, view):
    path = shared_dir / "fixtures/detectron2" / model / "reference.pt"
    theirs = torch.load(path, weights_only=True)[view]
    size, found = tuple(theirs["output_size"]), theirs["instances"]
    masks = np.unpackbits(found["pred_masks_packed"].numpy(), axis=1)[:, : size[0] * size[1]]
    masks = torch.from_numpy(masks).view(-1, *size).bool()
    categories = Categories([Category(n + 1, f"{n}", n < 80, (0, 0, 0)) for n in range(133)])
    sem_seg = theirs["sem_seg"].long()
    result = fuse(
        Instances(size, found["pred_boxes"], found["scores"], found["pred_classes"], masks=masks),
        torch.where(sem_seg > 0, sem_seg + 79, VOID),
        categories=categories,
        method="heuristic",
    )
    assert torch.equal(result.segment_ids, theirs["panoptic_seg"])
    ours = [(s.isthing, s.category_id - 1, s.instance) for s in result.segments]
    assert ours == [
        (s["isthing"], s["category_id"] + (0 if s["isthing"] else 79), s.get("instance_id"))
        for s in theirs["segments_info"]
    ]
    # The plain loop that the benchmark compares with is the same function.
    panoptic, segments = combine(masks, found["scores"], sem_seg)
    assert torch.equal(panoptic.int(), theirs["panoptic_seg"])
    assert [n for _, n in segments] == [s.get("instance_id") for s in theirs["segments_info"]]


# ---- what is asked of a learned head, and bad input


@pytest.mark.parametrize("method", LEARNED)
def test_a_function_is_asked_for_overlapping_pairs_only(method):
    case = scene(3)
    asked = []

    def head(instances, pairs):
        assert bool((instances.scores >= SMALL.score_threshold).all())
        assert bool((pairs[:, 0] < pairs[:, 1]).all())
        flat = instances.masks.flatten(1).double()
        common = flat @ flat.T
        share = common / common.diagonal()[:, None]
        enough = torch.maximum(share, share.T)[pairs[:, 0], pairs[:, 1]] >= SMALL.pair_overlap
        assert bool(enough.all())
        asked.append(len(pairs))
        # What the matrix says, of these instances.
        place = [next(n for n, s in enumerate(case.instances.scores) if s == score) for score in instances.scores]
        return case.occlusion[place][:, place]

    result = case.fuse(method, occlusion=head)
    assert asked[0] > 0
    assert torch.equal(result.segment_ids, case.fuse(method).segment_ids)


def test_a_function_that_ranks_sees_what_is_used():
    case = scene(5)
    result = case.fuse("srm", ranking=lambda some: -some.scores)
    assert torch.equal(result.segment_ids, case.fuse("srm", ranking=-case.instances.scores).segment_ids)


@pytest.mark.parametrize(
    ("method", "changes", "words"),
    [
        ("soe", {"occlusion": None}, ["'soe'", "`occlusion` is missing", "give"]),
        ("ocfusion", {"occlusion": None}, ["'ocfusion'", "`occlusion` is missing"]),
        ("srm", {"ranking": None}, ["'srm'", "`ranking` is missing", "give one score per instance"]),
        ("heuristic", {"sem_confidence": None}, ["unknown_erasing", "sem_confidence"]),
        ("nonsense", {}, ["'nonsense'", "heuristic, shr"]),
    ],
)
def test_what_is_missing(method, changes, words):
    config = replace(SMALL, unknown_erasing="sem_confidence" in changes)
    with pytest.raises(RefineError) as error:
        scene(0).fuse(method, config, **changes)
    assert all(word in str(error.value) for word in words)


def test_labels_that_are_not_contiguous_classes():
    case = scene(0)
    case.instances.labels[0] = THINGS  # stuff
    with pytest.raises(RefineError, match=r"instances.labels.*allows 0..2"):
        case.fuse("heuristic")
    case = scene(0)
    case.sem_seg[0, 0] = 255
    with pytest.raises(RefineError, match=r"sem_seg.*255"):
        case.fuse("heuristic")


def test_instances_without_masks():
    case = scene(0)
    case.instances.masks = None
    with pytest.raises(RefineError, match=r"`masks` nor `roi_masks`"):
        case.fuse("heuristic")


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("soe", {"occlusion": torch.zeros(7, 8)}),
        ("soe", {"occlusion": torch.zeros(9, 9)}),
        ("soe", {"occlusion": lambda instances, pairs: torch.zeros(2, 2)}),
        ("srm", {"ranking": torch.zeros(9)}),
        ("srm", {"ranking": lambda instances: torch.zeros(99)}),
        ("heuristic", {"sem_confidence": torch.zeros(3, 4)}),
    ],
)
def test_shapes_that_do_not_agree(method, changes):
    with pytest.raises(ValueError, match="expected shape"):
        scene(0).fuse(method, **changes)


@pytest.mark.parametrize("method", LEARNED)
def test_occlusion_is_a_probability(method):
    with pytest.raises(RefineError, match=r"occlusion.*0 to 1"):
        scene(0).fuse(method, occlusion=torch.randn(8, 8) * 5)
