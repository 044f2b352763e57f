"""Tests of `refine import` for Pascal VOC: files in its documented layout, drawn by Pillow."""

from pathlib import Path

import numpy as np
import pytest
from helpers.converted import SIZE, convert, draw_image, refused, same_objects
from helpers.published import FIELD, ONE, THREE, TWO, VOID, save


def voc(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    draw_image(folder / "JPEGImages/2007_1.jpg")
    draw_image(folder / "JPEGImages/2007_2.jpg")
    objects = np.select([ONE, TWO, THREE, VOID], [1, 2, 3, 255]).astype(np.uint8)
    classes = np.select([ONE, TWO, THREE, VOID], [15, 15, 8, 255]).astype(np.uint8)
    for name in ("2007_1", "2007_2"):
        save(folder / f"SegmentationObject/{name}.png", objects, palette=True)
        save(folder / f"SegmentationClass/{name}.png", classes, palette=True)
    lists = folder / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_1\n")
    (lists / "trainval.txt").write_text("2007_1\n2007_2\n")
    return objects, classes


def test_voc(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, classes = voc(tmp_path / "VOC2012")
    found = convert(capsys, tmp_path / "out", tmp_path / "VOC2012", "--split", "train")
    assert len(found.categories) == 21
    assert (found.categories["person"], found.categories["cat"]) == ((15, 1), (8, 1))
    assert found.categories["background"] == (21, 0)
    assert same_objects(found.masks("2007_1.jpg", "person"), [ONE, TWO])
    assert same_objects(found.masks("2007_1.jpg", "cat"), [THREE])
    assert same_objects(found.masks("2007_1.jpg", "background"), [classes == 0])
    assert ((found.maps["2007_1.jpg"] == 0) == VOID).all()
    both = convert(capsys, tmp_path / "both", tmp_path / "VOC2012", "--split", "trainval", "--background", "void")
    assert len(both.maps) == 2
    assert "has the splits train, trainval" in refused(capsys, tmp_path / "x", tmp_path / "VOC2012")


def test_voc_objects_of_two_classes_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "voc"
    objects, classes = voc(folder)
    save(folder / "SegmentationObject/2007_1.png", np.where(TWO, 1, objects), palette=True)
    save(folder / "SegmentationClass/2007_1.png", np.where(TWO, 12, classes).astype(np.uint8), palette=True)
    arguments = ("voc", folder, "--split", "train")
    assert "object 1 is dog and person in" in refused(capsys, tmp_path / "out", *arguments)
    save(folder / "SegmentationClass/2007_1.png", np.where(TWO, 77, classes).astype(np.uint8), palette=True)
    assert "value 77 is no class" in refused(capsys, tmp_path / "out", *arguments)


def test_two_images_of_one_annotation_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    voc(tmp_path / "voc")
    draw_image(tmp_path / "voc/JPEGImages/2007_1.png")
    message = refused(capsys, tmp_path / "out", "voc", tmp_path / "voc", "--split", "train")
    assert "2007_1.jpg and 2007_1.png both belong to" in message


def test_voc_with_the_label_map_of_cvat(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "voc"
    voc(folder)
    colors = np.zeros((*SIZE, 3), np.uint8)
    colors[ONE | TWO], colors[FIELD] = (10, 200, 30), (0, 0, 90)
    objects = np.zeros((*SIZE, 3), np.uint8)
    objects[ONE], objects[TWO], objects[FIELD] = (128, 0, 0), (0, 128, 0), (128, 128, 0)
    save(folder / "SegmentationClass/2007_1.png", colors)
    save(folder / "SegmentationObject/2007_1.png", objects)
    lines = ["# label:color_rgb:parts:actions", "background:0,0,0::", "cell:10,200,30::", "grass:0,0,90::"]
    (folder / "labelmap.txt").write_text("\n".join(lines))
    found = convert(capsys, tmp_path / "out", "voc", folder, "--split", "train", "--stuff", "grass")
    assert found.categories == {"cell": (1, 1), "grass": (2, 0), "background": (3, 0)}
    assert same_objects(found.masks("2007_1.jpg", "cell"), [ONE, TWO])
    assert same_objects(found.masks("2007_1.jpg", "grass"), [FIELD])
    assert same_objects(found.masks("2007_1.jpg", "background"), [~(ONE | TWO | FIELD)])
