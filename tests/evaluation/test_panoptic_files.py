"""Tests of PQ of files: stored results of panopticapi, contradictions, damaged files, and slow imports."""

import gc
import json
import shutil
import subprocess
import sys

import pytest
from helpers.small_maps import CATEGORIES, GOOD, MAP, segments

from refine import compiled
from refine.errors import RefineError
from refine.evaluation.panoptic_files import evaluate_files
from refine.formats.id_png import write_png
from refine.formats.panoptic_json import PanopticJson


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
