"""Tests of PQ against stored results of panopticapi, panopticapi on random maps, and hand-drawn maps."""

import gc
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from panopticapi.evaluation import pq_compute_single_core

from refine import compiled
from refine.errors import RefineError
from refine.evaluation.panoptic_files import evaluate_files
from refine.evaluation.pq import PanopticQuality
from refine.formats.id_png import read_png, write_png
from refine.formats.panoptic_json import PanopticJson
from refine.structures import Categories, Category

CATEGORIES = Categories(
    [Category(4, "cat", True, (0, 0, 0)), Category(2, "dog", True, (0, 0, 0)), Category(9, "sky", False, (0, 0, 0))]
)


def segments(*pairs, crowd=()):
    return [{"id": i, "category_id": c, "iscrowd": int(i in crowd)} for i, c in pairs]


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


@pytest.mark.parametrize("name", ["coco_panoptic", "nuclei"])
def test_equals_panopticapi_on_stored_predictions(shared_dir, name):
    truth, pred = shared_dir / "data" / name, shared_dir / "fixtures" / "pq" / f"{name}_val"
    report = evaluate_files(
        truth / "panoptic_val.json", truth / "panoptic_val", pred / "panoptic_pred.json", pred / "panoptic_pred"
    ).to_json()
    expected = json.loads((pred / "panopticapi.json").read_text())
    for group in ("All", "Things", "Stuff"):
        assert report[group] == pytest.approx(expected[group], abs=1e-9)
    for category, numbers in expected["per_class"].items():
        for key in ("pq", "sq", "rq"):
            assert report["per_class"][category][key] == pytest.approx(numbers[key], abs=1e-9)


def write_set(folder, ids, entries, image_id=1):
    folder.mkdir(parents=True, exist_ok=True)
    name = "a.png" if image_id == 1 else "b.png"  # images of equal names would be matched
    write_png(folder / name, ids)
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 2, "width": 4}],
        "annotations": [{"image_id": image_id, "file_name": name, "segments_info": entries}],
        "categories": CATEGORIES.to_json(),
    }
    (folder / "p.json").write_text(json.dumps(content))


MAP = np.array([[1, 1, 2, 2], [1, 1, 2, 2]])
GOOD = segments((1, 4), (2, 9))


@pytest.mark.parametrize(
    ("ids", "entries", "image_id", "words"),
    [
        (
            MAP,
            [GOOD[0] | {"area": 3}, GOOD[1]],
            1,
            ["area is 3", "4 pixels", "segment 1", "image 1 (", "a.png)"],
        ),
        (MAP, GOOD[:1], 1, ["has id 2", "not in segments_info"]),
        (MAP, [*GOOD, {"id": 5, "category_id": 4}], 1, ["segment 5 has no pixel"]),
        (MAP, [GOOD[0], {"id": 2, "category_id": 77}], 1, ["unknown category_id 77"]),
        (MAP, [GOOD[0], GOOD[0], GOOD[1]], 1, ["segment 1", "both use this id"]),
        (MAP, GOOD, 5, ["no prediction", "image 1"]),
        (MAP[:, :3], GOOD, 1, ["3 × 2", "4 × 2"]),
        (MAP, [GOOD[0] | {"area": -1}, GOOD[1]], 1, ["segment 1", "area is -1", "whole number of pixels"]),
        (MAP, [GOOD[0] | {"area": 4.5}, GOOD[1]], 1, ["segment 1", "area is 4.5", "whole number of pixels"]),
        (MAP, [GOOD[0] | {"area": 3.0}, GOOD[1]], 1, ["segment 1", "area is 3 ", "4 pixels"]),
        (MAP, [GOOD[0] | {"area": 2**70}, GOOD[1]], 1, ["segment 1", "area is 1180591620717411303424"]),
        (MAP, [GOOD[0] | {"id": "1"}, GOOD[1]], 1, ["segments_info[0]", "id is '1'", "integer"]),
        (MAP, [GOOD[0] | {"id": 0}, GOOD[1]], 1, ["id is 0", "from 1 to"]),
        (MAP, [GOOD[0] | {"id": 2**24}, GOOD[1]], 1, ["id is 16777216", "from 1 to"]),
        (MAP, [GOOD[0] | {"category_id": None}, GOOD[1]], 1, ["segment 1", "category_id None"]),
        (MAP, [GOOD[0] | {"category_id": [4]}, GOOD[1]], 1, ["segment 1", "category_id [4]"]),
        (MAP, [{"category_id": 4}, GOOD[1]], 1, ["segments_info[0]", "id is None"]),
        (MAP, [7, GOOD[1]], 1, ["image 1", "segments_info[0]"]),
        (MAP, [], 1, ["has id 1", "not in segments_info"]),
    ],
)
def test_contradictions_raise(tmp_path, ids, entries, image_id, words):
    write_set(tmp_path / "gt", MAP, GOOD)
    write_set(tmp_path / "pred", ids, entries, image_id)
    with pytest.raises(RefineError) as error:
        evaluate_files(tmp_path / "gt/p.json", tmp_path / "gt", tmp_path / "pred/p.json", tmp_path / "pred")
    for word in words:
        assert word in str(error.value)


def test_wrong_areas_of_the_ground_truth_raise(tmp_path):
    write_set(tmp_path / "gt", MAP, [GOOD[0] | {"area": 9}, GOOD[1]])
    write_set(tmp_path / "pred", MAP, GOOD)
    with pytest.raises(RefineError, match=r"gt/p.json: image 1 \(.*gt/a.png\): segment 1: area is 9"):
        evaluate_files(tmp_path / "gt/p.json", tmp_path / "gt", tmp_path / "pred/p.json", tmp_path / "pred")


def test_missing_and_damaged_files_raise(tmp_path):
    write_set(tmp_path / "gt", MAP, GOOD)
    write_set(tmp_path / "pred", MAP, GOOD)
    arguments = (tmp_path / "gt/p.json", tmp_path / "gt", tmp_path / "pred/p.json", tmp_path / "pred")
    data = (tmp_path / "pred/a.png").read_bytes()
    (tmp_path / "pred/a.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(RefineError, match=r"a.png: is damaged"):
        evaluate_files(*arguments)
    (tmp_path / "pred/a.png").unlink()
    with pytest.raises(RefineError, match=r"a.png: cannot be read"):
        evaluate_files(*arguments)
    (tmp_path / "pred/p.json").write_text("{")
    with pytest.raises(RefineError, match=r"p.json: is not valid JSON"):
        evaluate_files(*arguments)


IMPORTS = """
import sys
import numpy
before = set(sys.modules)
from refine.evaluation.panoptic_files import evaluate_files
assert evaluate_files(*sys.argv[1:]).pq == 1
print(*sys.modules.keys() - before)
"""


def test_files_are_evaluated_without_imports_that_take_long(tmp_path):
    write_set(tmp_path, MAP, GOOD)
    arguments = [str(tmp_path / "p.json"), str(tmp_path)] * 2
    evaluate_files(*arguments)  # compiles the loops where none are kept
    done = subprocess.run([sys.executable, "-c", IMPORTS, *arguments], capture_output=True, text=True, check=True)
    slow = {"torch", "numba", "cv2", "rich", "concurrent", "logging", "hashlib", "uuid"}
    if shutil.which("cc") and compiled._processor():  # else LLVM's library, which imports the others
        slow |= {"llvmlite.binding", "pathlib", "shutil", "tempfile", "random"}
    assert not slow & set(done.stdout.split())


def test_many_entries_are_read_without_garbage_collections(tmp_path):
    write_set(tmp_path, MAP, segments(*((n, 4) for n in range(1, 20_000))))
    begun = []

    def callback(phase, info):
        begun.append(phase)

    gc.callbacks.append(callback)
    try:
        assert len(PanopticJson(tmp_path / "p.json").table) == 19_999
    finally:
        gc.callbacks.remove(callback)
    assert len(begun) <= 2  # begin and end of the one that is due when all are read
    assert gc.isenabled()


def test_png_round_trip(tmp_path):
    ids = np.array([[0, 1, 255], [256, 65536, 2**24 - 1]])
    write_png(tmp_path / "x.png", ids)
    assert (read_png(tmp_path / "x.png") == ids).all()


def test_worst_images_come_first():
    quality = PanopticQuality(CATEGORIES)
    quality.update(MAP, GOOD, MAP, GOOD, image_id=1)
    quality.update(MAP, GOOD, 3 - MAP, GOOD, image_id=2)
    assert [image.image_id for image in quality.compute().worst(2)] == [2, 1]
