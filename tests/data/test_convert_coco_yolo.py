"""Tests of `refine import` for COCO instances and YOLO against pycocotools, and of overlaps and class lists."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from helpers.converted import SIZE, convert, draw_image, draw_mask, refused, same_objects
from PIL import Image
from pycocotools import mask as rle

SQUARE = [10.0, 10.0, 40.0, 10.0, 40.0, 40.0, 10.0, 40.0]
TRIANGLE = [30.5, 20.25, 70.0, 35.0, 30.5, 55.0]


def polygon_mask(*polygons: list[float], size: tuple[int, int] = SIZE) -> np.ndarray:
    return rle.decode(rle.merge(rle.frPyObjects(list(polygons), *size))) > 0


def coded(mask: np.ndarray) -> dict[str, Any]:
    code = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": code["size"], "counts": code["counts"].decode()}


def write_coco(folder: Path, annotations: list[dict], categories: list[dict] | None = None) -> Path:
    draw_image(folder / "val2017/a.jpg")
    content = {
        "images": [{"id": 139, "file_name": "a.jpg", "height": SIZE[0], "width": SIZE[1]}],
        "annotations": [{"id": n, "image_id": 139, "iscrowd": 0} | each for n, each in enumerate(annotations)],
        "categories": categories or [{"id": 1, "name": "cat"}, {"id": 3, "name": "dog", "supercategory": "animal"}],
    }
    path = folder / "annotations/instances_val2017.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def test_polygons_run_lengths_and_crowds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    disc, crowd = draw_mask("ellipse", 5, 42, 20, 58), draw_mask("rectangle", 60, 0, 79, 15)
    counts = np.diff(np.flatnonzero(np.diff(np.r_[-1, crowd.T.reshape(-1), -1]))).tolist()
    annotations = [
        {"category_id": 1, "segmentation": [SQUARE, [50, 2, 58, 2, 58, 10]]},
        {"category_id": 3, "segmentation": coded(disc)},
        {"category_id": 3, "segmentation": {"size": list(SIZE), "counts": counts}, "iscrowd": 1},
        {"category_id": 3, "segmentation": [[1.1, 1.1, 1.2, 1.1, 1.2, 1.2]]},
    ]
    found = convert(capsys, tmp_path / "out", write_coco(tmp_path, annotations))
    assert same_objects(found.masks("a.jpg", "cat"), [polygon_mask(SQUARE, [50, 2, 58, 2, 58, 10])])
    assert same_objects(found.masks("a.jpg", "dog"), [disc, crowd])
    assert sorted(s["iscrowd"] for s in found.segments("a.jpg")) == [0, 0, 1]
    assert found.content["images"][0]["id"] == 139
    assert found.categories == {"cat": (1, 1), "dog": (3, 1)}
    assert "category ids have gaps (2) and are kept" in found.output
    assert "skipped: 1 × annotation without a pixel" in found.output


def test_rules_for_overlaps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    square, triangle = polygon_mask(SQUARE), polygon_mask(TRIANGLE)
    common = np.count_nonzero(square & triangle)
    assert 0 < common < np.count_nonzero(triangle) < np.count_nonzero(square)
    annotations = [
        {"category_id": 3, "segmentation": [TRIANGLE]},
        {"category_id": 1, "segmentation": [SQUARE]},
        {"category_id": 1, "segmentation": [[12, 12, 20, 12, 20, 20, 12, 20]]},
    ]
    path = write_coco(tmp_path, annotations)
    small = polygon_mask(annotations[2]["segmentation"][0])

    found = convert(capsys, tmp_path / "smaller", path)
    assert same_objects(found.masks("a.jpg", "dog"), [triangle])
    assert same_objects(found.masks("a.jpg", "cat"), [square & ~triangle & ~small, small])
    assert found.counts["lost"] == common + small.sum()
    assert f"overlaps: {common + small.sum()} of" in found.output

    found = convert(capsys, tmp_path / "last", path, "--overlap", "last-in-front")
    assert same_objects(found.masks("a.jpg", "dog"), [triangle & ~square])
    assert same_objects(found.masks("a.jpg", "cat"), [square & ~small, small])

    message = refused(capsys, tmp_path / "error", path, "--overlap", "error")
    assert "'dog') and instance 1 of a.jpg ('cat') overlap" in message

    found = convert(capsys, tmp_path / "stuff", path, "--stuff", "dog", "--overlap", "smaller-in-front")
    assert same_objects(found.masks("a.jpg", "dog"), [triangle & ~square])  # things lie in front of stuff
    assert found.categories["dog"] == (3, 0)


def test_things_lie_in_front_of_crowds_whatever_their_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations = [
        {"category_id": 1, "segmentation": [SQUARE]},
        {"category_id": 1, "segmentation": coded(polygon_mask([35, 35, 45, 35, 45, 45, 35, 45])), "iscrowd": 1},
    ]
    found = convert(capsys, tmp_path / "out", write_coco(tmp_path, annotations))
    square, crowd = polygon_mask(SQUARE), polygon_mask([35, 35, 45, 35, 45, 45, 35, 45])
    assert same_objects(found.masks("a.jpg", "cat"), [square, crowd & ~square])


def test_hidden_objects_ignored_classes_and_merged_stuff(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations = [
        {"category_id": 1, "segmentation": [SQUARE]},
        {"category_id": 1, "segmentation": [SQUARE]},  # exactly the same
        {"category_id": 2, "segmentation": [TRIANGLE]},
        {"category_id": 2, "segmentation": [[60, 50, 79, 50, 79, 59, 60, 59]]},
        {"category_id": 3, "segmentation": [[0, 0, 5, 0, 5, 5, 0, 5]]},
    ]
    names = [(1, "cat", 1), (2, "grass", 0), (3, "bad", 1)]
    path = write_coco(tmp_path, annotations, [{"id": i, "name": n, "isthing": t} for i, n, t in names])
    found = convert(capsys, tmp_path / "out", path, "--ignore", "bad", "--background", "rest", check=False)
    square, void = polygon_mask(SQUARE), polygon_mask([0, 0, 5, 0, 5, 5, 0, 5])
    grass = polygon_mask(TRIANGLE, annotations[3]["segmentation"][0]) & ~square
    assert same_objects(found.masks("a.jpg", "cat"), [square])
    assert same_objects(found.masks("a.jpg", "grass"), [grass])
    assert same_objects(found.masks("a.jpg", "rest"), [~(square | grass | void)])
    assert (found.maps["a.jpg"][void] == 0).all()
    assert found.counts["void"] == void.sum()
    assert (found.counts["hidden"], found.counts["objects"]) == (1, 1)
    assert list(found.categories) == ["cat", "grass", "rest"]


def test_class_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotation = [{"category_id": 7, "segmentation": [SQUARE]}]
    names = [(0, "cells"), (5, "cell"), (7, "cell"), (8, "Cell ")]
    path = write_coco(tmp_path, annotation, [{"id": i, "name": n} for i, n in names])
    found = convert(capsys, tmp_path / "out", path, check=False)
    assert found.categories == {"cells": (1, 1), "cell": (2, 1), "Cell ": (3, 1)}
    assert "classes[1] and [2] are both named 'cell' and are merged" in found.output
    assert "'cell' and 'Cell ' differ only in case or blanks" in found.output
    assert "some class ids are missing, below 1 or too large; categories are numbered from 1" in found.output
    assert len(found.masks("a.jpg", "cell")) == 1

    assert "no class is named cel (did you mean cell?);" in refused(capsys, tmp_path / "x", path, "--stuff", "cel")
    assert "no class is named cel (did you mean cell?);" in refused(capsys, tmp_path / "x", path, "--ignore", "cel")
    other = write_coco(
        tmp_path / "other", [{"category_id": 3, "segmentation": [SQUARE]}], [{"id": 3, "name": "cell"}]
    )
    same = convert(capsys, tmp_path / "same", other, "--categories", tmp_path / "out/panoptic.json", check=False)
    assert same.content["categories"] == found.content["categories"]
    assert same.segments("a.jpg")[0]["category_id"] == 2
    first = tmp_path / "same/panoptic.json"
    assert "give only one" in refused(capsys, tmp_path / "x", path, "--categories", first, "--stuff", "cell")
    assert "cells, Cell  missing" in refused(capsys, tmp_path / "x", path, "--categories", write_categories(first))


def write_categories(source: Path) -> Path:
    content = json.loads(source.read_text())
    content["categories"] = [c for c in content["categories"] if c["name"] == "cell"]
    path = source.with_name("one.json")
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["images"][0].update(file_name="../a.jpg"), "leads out of"),
        (lambda c: c["images"][0].update(file_name="b.jpg"), "is in none of"),
        (lambda c: c["images"][0].update(width=79), "has 80 × 60 pixels, but its annotation"),
        (lambda c: c["annotations"][0].update(category_id=9), "annotations[0]: category_id 9"),
        (lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3]]), "annotations[0]: segmentation"),
        (lambda c: c["annotations"][0].pop("category_id"), "annotations[0]: has no `category_id`"),
        (lambda c: c["categories"][1].update(id=1), "categories[1]: id 1 is used twice"),
        (lambda c: c["categories"][1].update(name=None), "categories[1]: id and name are 3 and None"),
        (lambda c: c["annotations"][0].update(segments_info=[]), "is a COCO panoptic JSON"),
        (lambda c: c.pop("categories"), "expected lists"),
    ],
)
def test_invalid_coco(tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, message: str) -> None:
    path = write_coco(tmp_path, [{"category_id": 1, "segmentation": [SQUARE]}])
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    assert message in refused(capsys, tmp_path / "out", "coco", path)


def test_round_trip_of_coco(tmp_path: Path, capsys: pytest.CaptureFixture[str], shared_dir: Path) -> None:
    root = shared_dir / "data/coco_panoptic"
    content = json.loads((root / "panoptic_val.json").read_text())
    content["annotations"] = content["annotations"][:4]
    annotations, truth, sizes = [], {}, {i["id"]: (i["height"], i["width"]) for i in content["images"]}
    outlines, expected = [], {}
    for annotation in content["annotations"]:
        rgb = np.asarray(Image.open(root / "panoptic_val" / annotation["file_name"])).astype(np.int64)
        ids, image_id = rgb @ [1, 256, 65536], annotation["image_id"]
        truth[image_id] = {s["id"]: (s["category_id"], ids == s["id"]) for s in annotation["segments_info"]}
        canvas = np.zeros(ids.shape, np.int64)
        drawn = []
        for number, (category, mask) in truth[image_id].items():
            segment = {"image_id": image_id, "category_id": category, "iscrowd": 0}
            annotations.append(segment | {"segmentation": coded(mask)})
            found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            polygons = [(c.reshape(-1) + 0.5).tolist() for c in found if len(c) > 2]
            if polygons:
                outlines.append(segment | {"segmentation": polygons})
                drawn.append((number, category, polygon_mask(*polygons, size=sizes[image_id])))
        isthing = {c["id"]: c["isthing"] for c in content["categories"]}
        for number, _, mask in sorted(drawn, key=lambda d: (isthing[d[1]], -np.count_nonzero(d[2]))):
            canvas[mask] = number
        expected[image_id] = canvas
    images = [i for i in content["images"] if i["id"] in truth]
    for name, entries in (("exact", annotations), ("outlines", outlines)):
        entries = [each | {"id": n} for n, each in enumerate(entries)]
        coco = {"images": images, "annotations": entries, "categories": content["categories"]}
        (tmp_path / f"{name}.json").write_text(json.dumps(coco))
        found = convert(capsys, tmp_path / name, tmp_path / f"{name}.json", "--images", root / "images/val")
        lost = gained = 0
        for image in images:
            ids = found.maps[image["file_name"]]
            if name == "exact":
                masks = [mask for _, mask in truth[image["id"]].values()]
                assert same_objects([ids == i for i in np.unique(ids[ids > 0])], masks)
            else:
                # Same partition into segments as painting pycocotools' masks by the documented rule.
                pairs = np.unique(ids << 24 | expected[image["id"]])
                assert len(pairs) == len(set(pairs >> 24)) == len(set(pairs & 0xFFFFFF))
                original = sum(n * mask for n, (_, mask) in truth[image["id"]].items())
                lost += np.count_nonzero((expected[image["id"]] != original) & (original > 0))
                gained += np.count_nonzero((expected[image["id"]] != original) & (expected[image["id"]] > 0))
        if name == "exact":
            assert found.counts["lost"] == 0
        else:
            pixels = found.counts["pixels"]
            print(f"outlines: {lost / pixels:.2%} of the pixels lost, {gained / pixels:.2%} gained")
            assert max(lost, gained) < 0.05 * pixels


def write_yolo(folder: Path, lines: list[str], yaml: str = "train: images/train\nnames: [cat, dog]\n") -> Path:
    draw_image(folder / "images/train/a.jpg")
    draw_image(folder / "images/train/b.jpg")
    (folder / "labels/train").mkdir(parents=True, exist_ok=True)
    (folder / "labels/train/a.txt").write_text("\n".join(lines))
    (folder / "data.yaml").write_text(yaml)
    return folder


def shares(polygon: list[float]) -> str:
    return " ".join(f"{value / SIZE[1 - n % 2]:.8f}" for n, value in enumerate(polygon))


@pytest.mark.parametrize(
    "yaml",
    [
        "train: images/train\nnames: [cat, dog]\n",
        "path: ../datasets/x\ntrain: ../images/train\nval:\nnc: 2\nnames: {0: cat, 1: dog}\n",
        "train: list.txt\nval: images/val\nnames: [cat, dog]\n",
    ],
)
def test_yolo(tmp_path: Path, capsys: pytest.CaptureFixture[str], yaml: str) -> None:
    folder = write_yolo(tmp_path / "data", [f"0 {shares(SQUARE)}", "", f"1 {shares(TRIANGLE)}"], yaml)
    (folder / "list.txt").write_text("./images/train/a.jpg\nimages/train/b.jpg\n")
    split: list[object] = ["--split", "train"] if "val: images" in yaml else []
    if "datasets" in yaml:  # as Ultralytics has it: data.yaml is elsewhere
        (tmp_path / "yaml").mkdir()
        split = ["--images", folder]
        folder = (folder / "data.yaml").rename(tmp_path / "yaml/data.yaml")
    found = convert(capsys, tmp_path / "out", folder, *split, check=False)
    assert found.categories == {"cat": (1, 1), "dog": (2, 1)}
    assert same_objects(found.masks("train/a.jpg", "cat"), [polygon_mask(SQUARE) & ~polygon_mask(TRIANGLE)])
    assert same_objects(found.masks("train/a.jpg", "dog"), [polygon_mask(TRIANGLE)])
    assert not found.maps["train/b.jpg"].any()
    assert "no label file, so no object: 1 image of train" in found.output


@pytest.mark.parametrize(
    ("lines", "yaml", "message"),
    [
        (["0 0.1 0.1 0.2 0.2"], None, "a.txt:1: is a box"),
        (["0 0.1 0.1 0.2 0.2 0.3 1.2"], None, "a.txt:1: expected pairs of shares"),
        (["0 0.1 0.1 0.2 0.2 0.3"], None, "a.txt:1: expected pairs of shares"),
        (["0 0.1 nan 0.2 0.2 0.3 0.3"], None, "a.txt:1: expected pairs of shares"),
        (["2 0.1 0.1 0.2 0.2 0.3 0.3"], None, "a.txt:1: class 2 is not in names"),
        (["cat 0.1 0.1 0.2 0.2 0.3 0.3"], None, "a.txt:1: expected a class and coordinates"),
        ([], "train: images/train\n", "names is None"),
        ([], "train: images/x\nnames: [cat]\n", "is neither a folder nor a list"),
        ([], "train: images/train\nval: images/val\nnames: [cat]\n", "has the splits train, val"),
        ([], "train: [\n", "is not valid YAML"),
        ([], "names: [cat]\n", "has no split"),
    ],
)
def test_invalid_yolo(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: list[str], yaml: str | None, message: str
) -> None:
    folder = write_yolo(tmp_path / "data", lines, yaml or "train: images/train\nnames: [cat, dog]\n")
    assert message in refused(capsys, tmp_path / "out", "yolo", folder)


def test_formats_are_recognised_only_without_doubt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw_image(tmp_path / "a/images/a.png")
    assert "no format recognises it; give one of labels, masks, coco" in refused(
        capsys, tmp_path / "o", tmp_path / "a"
    )
    write_yolo(tmp_path / "a", [])
    draw_image(tmp_path / "a/masks/a.png")
    assert "could be labels or yolo; give the format" in refused(capsys, tmp_path / "out", tmp_path / "a")
    message = refused(capsys, tmp_path / "out", "yolo", tmp_path / "a", "--class", "cell")
    assert message == "--class: format yolo does not take it; these do: labels, masks"
