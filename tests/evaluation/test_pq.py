"""Tests of PQ against stored results of panopticapi, panopticapi on random maps, and hand-drawn maps."""

import os

import numpy as np
import pytest
from helpers.small_maps import CATEGORIES, GOOD, MAP, segments
from hypothesis import given, settings
from hypothesis import strategies as st
from panopticapi.evaluation import pq_compute_single_core

from refine.evaluation.pq import PanopticQuality
from refine.formats.id_png import read_png, write_png


def of_class(quality, category_id):
    return next(c for c in quality.compute().classes if c.category.id == category_id)


def test_a_match_needs_an_iou_above_one_half():
    # Segment 1 has 4 pixels; the prediction covers 3 of them and 1 other pixel: IoU 3/5.
    gt = np.array([[1, 1, 1, 1], [0, 2, 2, 2]])
    pred = np.array([[7, 7, 7, 8], [8, 7, 8, 8]])
    quality = PanopticQuality(CATEGORIES)
    quality.update(gt, segments((1, 4), (2, 9)), pred, segments((7, 4), (8, 9)))
    cat = of_class(quality, 4)
    assert (cat.tp, cat.fp, cat.fn, cat.iou) == (1, 0, 0, 3 / 5)
    # Sky: the prediction covers 2 of 3 pixels; of its own 4 pixels, 1 on void is excluded: IoU 2/4.
    sky = of_class(quality, 9)
    assert (sky.tp, sky.fp, sky.fn) == (0, 1, 1)


def test_prediction_on_void_or_crowd_is_no_false_positive():
    gt = np.array([[0, 0, 0, 5], [6, 6, 6, 5]])
    pred = np.array([[1, 1, 1, 1], [2, 2, 2, 2]])
    quality = PanopticQuality(CATEGORIES)
    # 3/4 of segment 1 lie on void, 3/4 of segment 2 on a crowd of its class; a crowd is never a false negative.
    quality.update(gt, segments((5, 2), (6, 4), crowd={6}), pred, segments((1, 2), (2, 4)))
    assert (of_class(quality, 4).fp, of_class(quality, 4).fn) == (0, 0)
    assert (of_class(quality, 2).fp, of_class(quality, 2).fn) == (0, 1)


def test_absent_classes_do_not_count():
    quality = PanopticQuality(CATEGORIES)
    assert quality.compute().group() == {"pq": 0.0, "sq": 0.0, "rq": 0.0, "n": 0}
    quality.update(np.ones((2, 2), int), segments((1, 4)), np.ones((2, 2), int), segments((1, 4)))
    assert quality.compute().group() == {"pq": 1.0, "sq": 1.0, "rq": 1.0, "n": 1}
    assert quality.compute().group(isthing=False)["n"] == 0


@st.composite
def maps(draw):
    """Draw a ground truth of a few rectangles and a similar prediction."""
    g = np.random.default_rng(draw(st.integers(0, 2**31)))
    gt = np.zeros((12, 16), np.int64)
    for n in range(1, draw(st.integers(1, 6)) + 1):
        y, x = g.integers(0, 10, 2)
        gt[y : y + g.integers(2, 9), x : x + g.integers(2, 9)] = n
    pred = np.roll(gt, g.integers(-1, 2, 2), (0, 1)) * 3
    pred[g.random(pred.shape) < 0.05] = 0
    ids = [[int(i) for i in np.unique(m) if i] for m in (gt, pred)]
    category = {i: int(g.choice([2, 4, 9])) for i in ids[0]}
    crowded = {i for i in ids[0] if category[i] != 9 and g.random() < 0.3}
    firsts = {}  # panopticapi handles one crowd per class
    crowded = {i for i in crowded if firsts.setdefault(category[i], i) == i}
    gt_segments = segments(*((i, category[i]) for i in ids[0]), crowd=crowded)
    pred_segments = segments(*((i, category.get(i // 3, 9) if g.random() < 0.8 else 4) for i in ids[1]))
    return gt, gt_segments, pred, pred_segments


@settings(max_examples=40, deadline=None)
@given(st.lists(maps(), min_size=1, max_size=3))
def test_equals_panopticapi_on_random_maps(tmp_path_factory, pairs):
    folder = tmp_path_factory.mktemp("pq")
    os.makedirs(folder / "gt"), os.makedirs(folder / "pred")
    matched, quality = [], PanopticQuality(CATEGORIES)
    for n, (gt, gt_segments, pred, pred_segments) in enumerate(pairs):
        write_png(folder / "gt" / f"{n}.png", gt)
        write_png(folder / "pred" / f"{n}.png", pred)
        for side, entries in ((gt, gt_segments), (pred, pred_segments)):
            for entry in entries:
                entry["area"] = int((side == entry["id"]).sum())
        matched.append(
            tuple(
                {"image_id": n, "file_name": f"{n}.png", "segments_info": [dict(e) for e in entries]}
                for entries in (gt_segments, pred_segments)
            )
        )
        quality.update(gt, gt_segments, pred, pred_segments)
    categories = {c["id"]: c for c in CATEGORIES.to_json()}
    expected = pq_compute_single_core(0, matched, str(folder / "gt"), str(folder / "pred"), categories)
    for c in quality.compute().classes:
        stat = expected[c.category.id]
        assert (c.tp, c.fp, c.fn) == (stat.tp, stat.fp, stat.fn)
        assert c.iou == pytest.approx(stat.iou, abs=1e-12)


def brute_force(gt, gt_segments, pred, pred_segments):
    """Compute TP, FP, FN and summed IoU by category id from boolean masks."""
    where = [
        {e["id"]: ids == e["id"] for e in entries} for ids, entries in ((gt, gt_segments), (pred, pred_segments))
    ]
    counts = {c.id: [0, 0, 0, 0.0] for c in CATEGORIES}
    matched = set()
    for t in gt_segments:
        if t["iscrowd"]:
            continue
        count = counts[t["category_id"]]
        for p in pred_segments:
            a, b = where[0][t["id"]], where[1][p["id"]] & (gt != 0)
            iou = (a & b).sum() / (a | b).sum()
            if p["category_id"] == t["category_id"] and iou > 0.5:
                count[0] += 1
                count[3] += iou
                matched |= {("gt", t["id"]), ("pred", p["id"])}
        count[2] += ("gt", t["id"]) not in matched
    for p in pred_segments:
        forgiven = gt == 0
        for t in gt_segments:
            if t["iscrowd"] and t["category_id"] == p["category_id"]:
                forgiven = forgiven | where[0][t["id"]]
        b = where[1][p["id"]]
        counts[p["category_id"]][1] += ("pred", p["id"]) not in matched and (b & forgiven).sum() <= b.sum() / 2
    return counts


@settings(max_examples=100, deadline=None)
@given(maps())
def test_equals_brute_force(pair):
    quality = PanopticQuality(CATEGORIES)
    quality.update(*pair)
    for category, (tp, fp, fn, iou) in brute_force(*pair).items():
        got = of_class(quality, category)
        assert (got.tp, got.fp, got.fn) == (tp, fp, fn)
        assert got.iou == pytest.approx(iou, abs=1e-12)


@pytest.mark.parametrize(("order", "false"), [((1, 2), 1), ((2, 1), 0)])
def test_only_the_last_crowd_of_a_class_excuses_predictions(order, false):
    # The prediction lies only on crowd 1. panopticapi keeps one crowd per class, the last one in the file.
    quality = PanopticQuality(CATEGORIES)
    entries = segments(*((i, 4) for i in order), crowd={1, 2})
    quality.update(np.array([[1, 1, 2, 2]]), entries, np.array([[8, 8, 0, 0]]), segments((8, 4)))
    assert of_class(quality, 4).fp == false


@settings(max_examples=20, deadline=None)
@given(st.lists(maps(), min_size=2, max_size=5))
def test_merged_parts_equal_the_whole(pairs):
    whole, left, right = (PanopticQuality(CATEGORIES) for _ in range(3))
    for n, pair in enumerate(pairs):
        whole.update(*pair)
        (left if n % 2 else right).update(*pair)
    left.merge(right)
    np.testing.assert_allclose(left.state(), whole.state(), atol=1e-12)


def test_png_round_trip(tmp_path):
    ids = np.array([[0, 1, 255], [256, 65536, 2**24 - 1]])
    write_png(tmp_path / "x.png", ids)
    assert (read_png(tmp_path / "x.png") == ids).all()


def test_worst_images_come_first():
    quality = PanopticQuality(CATEGORIES)
    quality.update(MAP, GOOD, MAP, GOOD, image_id=1)
    quality.update(MAP, GOOD, 3 - MAP, GOOD, image_id=2)
    assert [image.image_id for image in quality.compute().worst(2)] == [2, 1]
