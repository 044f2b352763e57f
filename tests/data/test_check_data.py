"""Tests that `check_dataset` reports every planted fault, and nothing in valid data."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from helpers.drawn_data import CATEGORIES, IDS, SEGMENTS, Files, write_cityscapes, write_coco
from helpers.planted_faults import FAULTS, cut
from PIL import Image

from refine.cli.main import main
from refine.data.check.dataset import check_cityscapes, check_dataset
from refine.data.check.report import Finding, Report
from refine.data.synthetic.scenes import generate
from refine.errors import RefineError
from refine.files import write_json


def check(files: Files, **more: Any) -> Report:
    files.save()
    return check_dataset(files.images, files.json, files.segments, threads=2, **more)


def errors(files: Files, **more: Any) -> list[str]:
    return [f"{f.kind}: {f.message}" for f in check(files, **more).errors]


def test_valid_data_have_no_errors_and_correct_counts(tmp_path: Path) -> None:
    report = check(write_coco(tmp_path, [IDS] * 3, [SEGMENTS, SEGMENTS, SEGMENTS]))
    assert report.ok
    assert {f.message for f in report.warnings} == {f"image {10 + n}: has only 6 × 4 pixels" for n in range(3)}
    counts = {c.name: (c.isthing, c.images, c.segments, c.crowds, c.area) for c in report.classes}
    assert counts == {
        "car": (True, 3, 3, 0, 12),
        "cat": (True, 3, 3, 0, 12),
        "grass": (False, 3, 3, 0, 27),
        "road": (False, 3, 3, 0, 12),
    }
    assert (report.tally.total, report.tally.pixels, report.tally.void) == (3, 72, 9)


def test_estimated_ranges_of_values_are_told_in_one_line(tmp_path: Path) -> None:
    files = write_coco(tmp_path, [IDS] * 3, [SEGMENTS] * 3)
    assert "range of values" not in check(files).text()
    for n in (1, 2):
        values = np.arange(24, dtype=np.uint16).reshape(4, 6) * 100 + n
        Image.fromarray(values).save(files.images / f"{n}.png")
    report = check(files)
    assert report.ok
    (line,) = [line for line in report.text().splitlines() if "range of values" in line]
    assert line.startswith("2 images of more than 8 bits without a stated range of values")
    assert (
        f"{files.images / '1.png'}: values 1 to 2301, the percentiles 0.1 and 99.9, are mapped to 0 to 255" in line
    )
    assert "--range" not in line  # an option of predict
    assert [Path(entry.partition(":")[0]).name for entry in sorted(report.to_json()["ranges"])] == [
        "1.png",
        "2.png",
    ]


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_reported_and_nothing_else(tmp_path: Path, fault: str) -> None:
    files = write_coco(tmp_path)
    plant, expected = FAULTS[fault]
    plant(files)
    assert errors(files) == expected


def test_all_faults_of_many_images_are_reported(tmp_path: Path) -> None:
    files = write_coco(tmp_path, [IDS] * 70, [SEGMENTS] * 70)
    files.content["annotations"][3]["segments_info"][0]["area"] = 1
    (files.images / "5.png").write_bytes(b"\x89PNG")
    cut(files.images / "6.png")
    cut(files.segments / "67_ids.png")
    files.paint(69, np.where(IDS == 0, 5, IDS))
    found = check(files).errors
    assert [(f.kind, Path(f.file).name) for f in found] == [
        ("segment", "3_ids.png"),
        ("image file", "5.png"),
        ("image file", "6.png"),
        ("PNG", "67_ids.png"),
        ("segment", "69_ids.png"),
    ]


def test_unusual_but_usable_data_give_warnings(tmp_path: Path) -> None:
    files = write_coco(tmp_path, categories=[*CATEGORIES, {"id": 5, "name": "dog", "isthing": 1}])
    content = files.content
    content["images"].append({"id": "extra", "file_name": "0.png", "height": 400, "width": 600})
    infos = content["annotations"][0]["segments_info"]
    infos[1]["iscrowd"] = 1  # the only cat
    infos[2]["category_id"] = 200  # a second road
    infos[0]["iscrowd"] = 1
    infos[3]["bbox"] = [3, 2, 1, 1]  # another convention
    files.paint(0, np.where(IDS == 70000, 0, IDS) + (np.arange(24).reshape(4, 6) == 15) * 70000)
    infos[3]["area"], infos[3]["bbox"] = 1, [3, 2, 2, 2]
    Image.new("RGB", (3, 3)).save(files.images / "more.jpg")
    Image.new("RGB", (3, 3)).save(files.segments / "more.png")
    report = check(files)
    assert report.ok, report.text()
    assert {f"{f.kind}: {f.message}" for f in report.warnings} == {
        "image: image 10: has only 6 × 4 pixels",
        "image: image extra: 0.png is also the file of image 10",
        "image: image extra (0.png) has no annotation and is skipped",
        "segment: annotation of image 10: segment 9: is a crowd of the stuff class 200",
        "segment: annotation of image 10: segment 7: stuff class 200 already has segment 9",
        "segment: image 10: segment 70000: bbox is [3, 2, 2, 2] in the JSON, [3, 2, 1, 1] in the PNG",
        "segment: image 10: segment 70000: thing of 1 pixel, dropped in training",
        "category: cat (id 17): has no instance, only 1 crowds",
        "category: dog (id 5): has no instance",
        "category: grass (id 105): has no segment",
        "file: is not listed in the JSON",
    }
    assert sum(f.kind == "file" for f in report.warnings) == 2


def test_unlabelled_images_and_missing_kinds_give_warnings(tmp_path: Path) -> None:
    files = write_coco(tmp_path, [np.zeros((40, 40), int)], [[]], categories=CATEGORIES[:2])
    report = check(files)
    assert report.ok
    messages = [f.message for f in report.warnings]
    assert messages[:2] == ["categories: there is no stuff class", "no pixel has a label"]


def test_missing_folder(tmp_path: Path) -> None:
    files = write_coco(tmp_path)
    report = check_dataset(tmp_path / "nowhere", files.json, files.segments)
    assert [f.message for f in report.errors] == [
        "no such folder; check the path",
        "no such file; check the path",
    ]
    with pytest.raises(RefineError, match="cannot be read"):
        check_dataset(files.images, tmp_path / "none.json", files.segments)
    write_json(files.json, {"images": [], "annotations": []})
    with pytest.raises(RefineError, match="has no list `categories`"):
        check_dataset(files.images, files.json, files.segments)


def test_counts_are_those_after_a_remap(tmp_path: Path) -> None:
    files = write_coco(tmp_path)
    ground = {"id": 1, "name": "ground", "isthing": 0}
    animal, vehicle = {"id": 2, "name": "animal", "isthing": 1}, {"id": 3, "name": "vehicle", "isthing": 1}
    path = tmp_path / "remap.json"
    write_json(path, {"categories": [ground, animal, vehicle], "map": {"17": 2, "3": None, "200": 1, "105": 1}})
    report = check(files, remap=path)
    assert [(c.name, c.images, c.segments, c.area) for c in report.classes] == [
        ("animal", 1, 1, 4),
        ("vehicle", 0, 0, 0),
        ("ground", 1, 2, 13),
    ]
    assert report.tally.void == 3 + 4
    unnamed = {"17": 2, "3": None, "200": "stuff", "105": 1}
    write_json(path, {"categories": [ground, animal, vehicle], "map": unnamed})
    assert [(c.name, c.images) for c in check(files, remap=path).classes] == [
        ("animal", 1),
        ("vehicle", 0),
        ("ground", 1),
    ]
    write_json(path, {"categories": [ground], "map": {"17": 1}})
    assert errors(files, remap=path) == ["remap: map: category 3 (car) is missing; map it to an id or to null"]


def test_instances_are_checked_one_by_one(tmp_path: Path) -> None:
    files = write_coco(tmp_path)
    square = [[1, 1, 3, 1, 3, 3, 1, 3]]
    good = {"image_id": 10, "category_id": 17, "segmentation": square, "iscrowd": 0}
    path = tmp_path / "instances.json"
    annotations = [
        good,
        good | {"image_id": 99},
        good | {"category_id": 200},
        good | {"category_id": 1},
        good | {"segmentation": []},
        {"image_id": 10, "category_id": 17},
        7,
    ]
    write_json(path, {"annotations": annotations})
    assert errors(files, instances=path) == [
        "instance: annotations[2]: category_id 200 is stuff; instances are things",
        "instance: annotations[3]: category_id 1 is not in the panoptic categories; add it there",
        "instance: annotations[4]: segmentation is invalid (it is empty); correct or drop it",
        "instance: annotations[5]: has no `segmentation`; give a COCO instances JSON",
        "instance: annotations[6]: is not a COCO instance annotation ('int' object is not subscriptable); "
        "correct it",
    ]
    write_json(path, {"annotations": [good]})
    report = check(files, instances=path)
    assert report.ok
    assert Finding("instance", str(path), "image 10: no instance for segments 70000") in report.warnings
    write_json(path, {"annotations": [good | {"image_id": 99}]})
    assert errors(files, instances=path) == [
        "instance: annotations: none belongs to an image of the data set; check both files"
    ]
    path.write_text("{")
    assert len(errors(files, instances=path)) == 1


def test_cityscapes_faults(tmp_path: Path) -> None:
    values = np.full((40, 50), 7)
    values[5:9, 5:9] = 26001
    values[20:, 20:] = 24
    for n in range(4):
        write_cityscapes(tmp_path, values, f"ulm_{n:06d}_000019")
    report = check_cityscapes(tmp_path, "val")
    assert report.ok
    counts = {c.name: (c.images, c.segments, c.crowds, c.area) for c in report.classes if c.area}
    assert counts == {"person": (4, 0, 4, 2400), "car": (4, 4, 0, 64), "road": (4, 4, 0, 4 * (2000 - 616))}
    images, labels = tmp_path / "leftImg8bit/val/ulm", tmp_path / "gtFine/val/ulm"
    (images / "ulm_000000_000019_leftImg8bit.png").unlink()
    cut(labels / "ulm_000001_000019_gtFine_instanceIds.png")
    values[0, :3] = 77
    cv2.imwrite(str(labels / "ulm_000002_000019_gtFine_instanceIds.png"), values.astype(np.uint16))
    Image.new("RGB", (9, 9)).save(images / "ulm_000003_000019_leftImg8bit.png")
    Image.new("RGB", (9, 9)).save(images / "ulm_000009_000019_leftImg8bit.png")
    report = check_cityscapes(tmp_path, "val")
    assert [(Path(f.file).name[:10], f.message) for f in report.errors] == [
        ("ulm_000000", "no such file; check the path"),
        ("ulm_000001", "is damaged (truncated after 45 bytes); write it again"),
        ("ulm_000002", "value 77 (3 pixels) is not a Cityscapes label; copy it again"),
        ("ulm_000003", "expected 50 × 40 pixels as in its segments, got 9 × 9 pixels; make them equal"),
    ]
    assert report.warnings[0].message == "has no instanceIds file and is skipped"


def test_synthetic_data_are_valid(tmp_path: Path) -> None:
    generate(tmp_path, 3, size=(64, 96))
    report = check_dataset(
        tmp_path / "images",
        tmp_path / "panoptic.json",
        tmp_path / "segments",
        instances=tmp_path / "instances.json",
    )
    assert report.ok
    assert {f.kind for f in report.warnings} <= {"category"}


@pytest.mark.parametrize("name", ["nuclei", "coco_panoptic", "coco_things_512"])
def test_real_data_are_valid(shared_dir: Path, tmp_path: Path, name: str) -> None:
    """The first images of published data sets have no errors."""
    root = shared_dir / "data" / name
    if not root.is_dir():
        pytest.skip(f"no data at {root}")
    content = json.loads((root / "panoptic_val.json").read_text())
    annotations = content["annotations"][:4]
    image_ids = {annotation["image_id"] for annotation in annotations}
    images = [image for image in content["images"] if image["id"] in image_ids]
    write_json(tmp_path / "few.json", content | {"images": images, "annotations": annotations})
    report = check_dataset(root / "images" / "val", tmp_path / "few.json", root / "panoptic_val")
    assert report.ok, report.text()
    assert report.tally.total == 4


def test_command_prints_writes_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = write_coco(tmp_path, [IDS] * 30, [SEGMENTS] * 30)
    command = ["check-data", "--images", str(files.images), "--json", str(files.json)]
    command += ["--segments", str(files.segments), "--out", str(tmp_path / "report.json")]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "30 images with readable segments; 12.5% of the pixels are void" in out
    assert "\n0 errors" in out
    for n in range(25):
        (files.images / f"{n}.png").unlink()
    assert main(command) == 1
    captured = capsys.readouterr()
    assert "25 errors\n  image file (25)\n" in captured.out
    assert "… and 5 more" in captured.out
    assert captured.err.strip() == f"refine: error: {files.json}: 25 errors; see the lines above"
    written = json.loads((tmp_path / "report.json").read_text())
    assert len(written["errors"]) == 25
    assert written["errors"][24] == {
        "kind": "image file",
        "file": str(files.images / "24.png"),
        "message": "no such file; check the path",
    }
    assert written["classes"][0]["segments"] == 30


def test_command_accepts_one_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cityscapes(tmp_path, np.full((40, 50), 7))
    assert main(["check-data", "--cityscapes", str(tmp_path), "--split", "val"]) == 0
    for wrong in (["--json", "x"], ["--cityscapes", "x"], ["--cityscapes", "x", "--split", "y", "--json", "z"], []):
        with pytest.raises(SystemExit, match="2"):
            main(["check-data", *wrong])
    capsys.readouterr()
