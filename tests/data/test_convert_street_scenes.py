"""Tests of `refine import` for Cityscapes, real images, and Mapillary Vistas, drawn in its documented layout."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.converted import convert, draw_image, refused, same_objects
from helpers.published import ONE, TWO, VOID, save
from PIL import Image


def test_cityscapes(tmp_path: Path, capsys: pytest.CaptureFixture[str], shared_dir: Path) -> None:
    root = shared_dir / "data/cityscapes_sample"
    found = convert(capsys, tmp_path / "out", root, "--split", "val")
    assert len(found.maps) == 2
    assert len(found.categories) == 19
    assert found.categories["car"] == (26, 1)
    for name, ids in found.maps.items():
        stem = name.removesuffix("_leftImg8bit.png")
        values = np.asarray(Image.open(root / f"gtFine/val/{stem}_gtFine_instanceIds.png")).astype(np.int64)
        labels = np.where(values < 1000, values, values // 1000)
        known = np.isin(labels, [number for number, _ in found.categories.values()])
        assert ((ids > 0) == known).all()
        pairs = np.stack(np.divmod(np.unique(ids[known] << 16 | values[known]), 1 << 16))
        assert len(pairs[0]) == len(set(pairs[0])) == len(set(pairs[1])) == len(found.segments(name))
        category = {s["id"]: s["category_id"] for s in found.segments(name)}
        crowd = {s["id"]: s["iscrowd"] for s in found.segments(name)}
        for segment, value in pairs.T.tolist():
            assert category[segment] == (value if value < 1000 else value // 1000)
            assert crowd[segment] == (24 <= value < 34)
    assert found.counts["lost"] == found.counts["gained"] == 0


def test_mapillary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "vistas"
    root.mkdir()
    labels = [
        {"name": "object--car", "readable": "Car", "instances": True, "evaluate": True, "color": [0, 0, 142]},
        {"name": "nature--sky", "readable": "Sky", "instances": False, "evaluate": True, "color": [70, 130, 180]},
        {"name": "void--unlabeled", "readable": "Unlabeled", "instances": False, "evaluate": False},
    ]
    (root / "config_v1.2.json").write_text(json.dumps({"labels": labels[::-1]}))
    (root / "config_v2.0.json").write_text(json.dumps({"labels": labels}))
    draw_image(root / "training/images/a.jpg")
    draw_image(root / "validation/images/b.jpg")
    values = np.select([ONE, TWO, VOID], [0, 1, 512], 256).astype(np.uint16)
    for folder in ("training", "validation"):
        for version in ("v1.2", "v2.0"):
            save(root / folder / version / f"instances/{'ab'[folder > 'u']}.png", values)
    found = convert(capsys, tmp_path / "out", root, "--split", "training")
    assert found.categories == {"Car": (1, 1), "Sky": (2, 0)}
    assert same_objects(found.masks("a.jpg", "Car"), [ONE, TWO])
    assert same_objects(found.masks("a.jpg", "Sky"), [~(ONE | TWO | VOID)])
    assert ((found.maps["a.jpg"] == 0) == VOID).all()
    save(root / "training/v2.0/instances/a.png", values + 256)
    message = refused(capsys, tmp_path / "x", "mapillary", root, "--split", "training")
    assert "label 3 is not in the config" in message
