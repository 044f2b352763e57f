"""Tests of `refine import` for ADE20K, in full and as in the challenge: files in their documented layouts."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.converted import SIZE, convert, draw_image, refused, same_objects
from helpers.published import FIELD, ONE, THREE, TWO, save


def ade20k(folder: Path, change: Callable[[dict], object] = lambda content: None) -> None:
    # Class 1234 = 256 · 4 + 210 is stored in red as 40, class 3 in green.
    colors = np.zeros((*SIZE, 3), np.uint8)
    colors[ONE], colors[TWO], colors[FIELD] = (40, 210, 7), (40, 210, 9), (0, 3, 200)
    for name in ("training", "validation"):
        image = draw_image(folder / f"images/ADE/{name}/urban/street/ADE_train_1.jpg")
        save(image.with_name("ADE_train_1_seg.png"), colors)
        save(image.with_name("ADE_train_1_parts_1.png"), colors)
        objects = [
            {"id": 0, "name": "person, individual", "name_ndx": 1234, "parts": {"part_level": 0}},
            {"id": 1, "name": "person, individual", "name_ndx": 1234, "parts": {"part_level": 0}},
            {"id": 2, "name": "grass", "name_ndx": 3, "parts": {"part_level": 0}},
            {"id": 3, "name": "head", "name_ndx": 1300, "parts": {"part_level": 1}},
        ]
        content = {"annotation": {"filename": "ADE_train_1.jpg", "object": objects}}
        change(content)
        image.with_suffix(".json").write_text(json.dumps(content))


def test_ade20k(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ade20k(tmp_path / "ade")
    found = convert(capsys, tmp_path / "out", tmp_path / "ade", "--split", "training", "--stuff", "grass")
    name = "urban/street/ADE_train_1.jpg"
    assert found.categories == {"person, individual": (1234, 1), "grass": (3, 0)}
    assert same_objects(found.masks(name, "person, individual"), [ONE, TWO])
    assert same_objects(found.masks(name, "grass"), [FIELD])
    assert found.counts["void"] == np.count_nonzero(~(ONE | TWO | FIELD))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotation"]["object"].pop(2), "class 3 is in no JSON"),
        (lambda c: c["annotation"]["object"][1].update(name="man"), "name_ndx 1234 is man and person"),
        (lambda c: c["annotation"]["object"][1].pop("parts"), "annotation.object[1]: got"),
        (lambda c: c.pop("annotation"), "expected annotation.object"),
    ],
)
def test_invalid_ade20k(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[dict], object], message: str
) -> None:
    ade20k(tmp_path / "ade", change)
    assert message in refused(capsys, tmp_path / "out", "ade20k", tmp_path / "ade", "--split", "training")


def ade_challenge(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Two persons (class 13, thing 4) and a bed without an instance (class 8) on grass (class 10)."""
    semantic = np.select([ONE | TWO, THREE, FIELD], [13, 8, 10]).astype(np.uint8)
    instances = np.zeros((*SIZE, 3), np.uint8)
    instances[ONE], instances[TWO] = (4, 1, 90), (4, 2, 90)
    instances[51:53, :10] = (1, 3, 0)  # a bed in front of grass
    for split in ("training", "validation"):
        draw_image(folder / f"images/{split}/ADE_{split}_1.jpg")
        save(folder / f"annotations/{split}/ADE_{split}_1.png", semantic)
        save(folder / f"annotations_instance/{split}/ADE_{split}_1.png", instances)
    (folder / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tName\n")
    return semantic, instances


def test_ade_challenge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, instances = ade_challenge(tmp_path / "ade")
    found = convert(capsys, tmp_path / "out", tmp_path / "ade", "--split", "training")
    assert len(found.categories) == 150
    assert sum(isthing for _, isthing in found.categories.values()) == 100
    assert [found.categories[name] for name in ("wall", "person", "flag")] == [(1, 0), (13, 1), (150, 1)]
    name = "ADE_training_1.jpg"
    bed = instances[..., 1] == 3
    assert same_objects(found.masks(name, "person"), [ONE, TWO])
    assert same_objects(found.masks(name, "bed"), [bed])
    assert same_objects(found.masks(name, "grass"), [FIELD & ~bed])
    assert ((found.maps[name] == 0) == ~(ONE | TWO | FIELD)).all()


@pytest.mark.parametrize(
    ("colour", "message"),
    [((5, 1, 0), "instance 1 has two classes"), ((101, 9, 0), "red is 101 for instance 9; expected 1 to 100")],
)
def test_invalid_ade_challenge(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], colour: tuple[int, int, int], message: str
) -> None:
    _, instances = ade_challenge(tmp_path / "ade")
    instances[0, 0] = colour
    file = save(tmp_path / "ade/annotations_instance/training/ADE_training_1.png", instances)
    assert f"{file}: {message}" in refused(capsys, tmp_path / "out", tmp_path / "ade", "--split", "training")
    (tmp_path / "ade/annotations/validation/ADE_validation_1.png").unlink()
    assert "no such file, but" in refused(capsys, tmp_path / "x", tmp_path / "ade", "--split", "validation")
    (tmp_path / "ade/annotations").rename(tmp_path / "ade/elsewhere")
    assert "ADEChallengeData2016 needs it" in refused(capsys, tmp_path / "x", tmp_path / "ade")
