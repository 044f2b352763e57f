"""Tests of `refine import` for CVAT and Datumaro: files written by hand, masks by Pillow and pycocotools."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.annotated import DISC, LEFT, SMALL, SQUARE, TOP, mask_of, runs, save
from helpers.converted import SIZE, convert, draw_image, refused, same_objects
from pycocotools import mask as rle

CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><task><labels>
<label><name>cat</name><color>#ff0000</color><attributes></attributes></label>
<label><name>dog</name><color>#00ff00</color><attributes></attributes></label>
<label><name>sky</name></label>
</labels></task></meta>
<image id="0" name="{name}" width="80" height="60">
<polygon label="cat" source="manual" occluded="0" points="{square}" z_order="1" group_id="2">
<attribute name="x">1</attribute></polygon>
<box label="cat" source="manual" occluded="0" xtl="60.0" ytl="2.0" xbr="70.0" ybr="12.0" z_order="0" group_id="2">
</box>
<polygon label="dog" source="manual" occluded="0" points="15,15;20,15;20,20;15,20" z_order="0"></polygon>
<mask label="dog" source="manual" occluded="0" rle="{rle}" left="{left}" top="{top}" width="{width}" 
height="{height}" z_order="0"></mask>
<ellipse label="dog" cx="60.0" cy="40.0" rx="10.0" ry="5.0" rotation="90.0" z_order="0"></ellipse>
<polyline label="dog" points="1,1;2,2" z_order="0"></polyline>
<polygon label="sky" points="0,0;80,0;80,60;0,60" z_order="-1"></polygon>
</image></annotations>
"""


def cvat(**more: str) -> str:
    values = {
        "name": "day/a.jpg",
        "square": ";".join(f"{x:.2f},{y:.2f}" for x, y in SQUARE),
        "rle": ", ".join(map(str, runs(SMALL))),
        "left": LEFT,
        "top": TOP,
        "width": SMALL.shape[1],
        "height": SMALL.shape[0],
    }
    return CVAT.format(**(values | more))


def test_cvat(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw_image(tmp_path / "data/images/day/a.jpg")
    save(tmp_path / "data/annotations.xml", cvat())
    found = convert(capsys, tmp_path / "out", tmp_path / "data", "--stuff", "sky")
    assert found.categories == {"cat": (1, 1), "dog": (2, 1), "sky": (3, 0)}
    assert found.content["categories"][0]["color"] == [255, 0, 0]
    cat = mask_of(SQUARE) | mask_of([[60, 2], [70, 2], [70, 12], [60, 12]])
    y, x = np.mgrid[:60, :80] + 0.5
    ellipse = ((x - 60) / 5) ** 2 + ((y - 40) / 10) ** 2 <= 1
    # The cat's z_order is greater, so the smaller dog behind it is hidden.
    assert same_objects(found.masks("day/a.jpg", "cat"), [cat])
    assert same_objects(found.masks("day/a.jpg", "dog"), [DISC, ellipse])
    assert same_objects(found.masks("day/a.jpg", "sky"), [~(cat | DISC | ellipse)])
    assert (found.counts["hidden"], found.counts["objects"]) == (1, 3)
    assert "skipped: 1 × polyline (no area)" in found.output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (cvat(name="../a.jpg"), "image[0]: name: file_name '../a.jpg' leads out"),
        (cvat(name="b.jpg"), "image[0]: 'b.jpg' is in none of"),
        (cvat(square="1,2;3"), "polygon[0]: the polygon is invalid"),
        (cvat(square="1,2;3,x"), "polygon[0]: points: could not convert"),
        (cvat(rle="1, 2"), "mask[3]: rle: expected counts of 306 pixels, got 3"),
        (cvat(rle="-1, 307"), "mask[3]: rle: expected counts"),
        (cvat(left="70"), "mask[3]: a mask of 18 × 17 pixels at (70"),
        (cvat(top="x"), "mask[3]: top is 'x'"),
        (cvat().replace('label="cat"', 'label="cow"'), "polygon[0]: label 'cow' is not in the list"),
        (cvat().replace('width="80"', 'width="81"'), "has 80 × 60 pixels, but its annotation"),
        (cvat().replace('width="80"', 'width="800000000"'), "image[0]: has 800000000 × 60 pixels; expected"),
        (cvat().replace("</image>", ""), "is not valid XML"),
        (cvat().replace("<image", "<track").replace("</image>", "</track>"), "got CVAT for video"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotations>&b;</annotations>', "declares a document type"),
    ],
)
def test_invalid_cvat(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    draw_image(tmp_path / "data/day/a.jpg")
    assert message in refused(capsys, tmp_path / "out", "cvat", save(tmp_path / "data/task.xml", text))


def datumaro() -> dict:
    flat = np.ravel(SQUARE).tolist()
    code = rle.encode(np.asfortranarray(DISC.astype(np.uint8)))
    annotations = [
        {"id": 0, "type": "polygon", "group": 1, "label_id": 0, "points": flat, "z_order": 3},
        {"id": 1, "type": "bbox", "group": 1, "label_id": 0, "bbox": [60, 2, 10, 10], "z_order": 0},
        {"id": 2, "type": "polygon", "group": 0, "label_id": 1, "points": [15, 15, 20, 15, 20, 20], "z_order": 2},
        {
            "id": 3,
            "type": "mask",
            "group": 0,
            "label_id": 1,
            "rle": {"counts": code["counts"].decode(), "size": list(SIZE)},
            "z_order": 0,
        },
        {"id": 4, "type": "ellipse", "group": 0, "label_id": 1, "points": [50, 35, 70, 45], "z_order": 0},
        {"id": 5, "type": "label", "label_id": 1},
    ]
    items = [
        {"id": "a", "annotations": annotations, "image": {"path": "a.jpg", "size": list(SIZE)}},
        {"id": "sub/b", "annotations": []},
    ]
    labels = [{"name": name, "parent": "", "attributes": []} for name in ("cat", "dog")]
    return {"info": {}, "categories": {"label": {"labels": labels}}, "items": items}


def test_datumaro(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw_image(tmp_path / "data/images/default/a.jpg")
    draw_image(tmp_path / "data/images/default/sub/b.png")
    save(tmp_path / "data/annotations/default.json", datumaro())
    found = convert(capsys, tmp_path / "out", tmp_path / "data", check=False)
    cat = mask_of(SQUARE) | mask_of([[60, 2], [70, 2], [70, 12], [60, 12]])
    y, x = np.mgrid[:60, :80] + 0.5
    ellipse = ((x - 60) / 10) ** 2 + ((y - 40) / 5) ** 2 <= 1
    assert same_objects(found.masks("a.jpg", "cat"), [cat])
    assert same_objects(found.masks("a.jpg", "dog"), [DISC, ellipse])
    assert found.counts["hidden"] == 1
    assert not found.maps["sub/b.png"].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["items"][0]["image"].update(path="/etc/a.jpg"),
            "items[0]: image.path: file_name '/etc/a.jpg'",
        ),
        (lambda c: c["items"][1].update(id="../b"), "items[1]: id: file_name '../b' leads out"),
        (lambda c: c["items"][0]["annotations"][0].update(label_id=2), "annotations[0]: label_id is 2"),
        (
            lambda c: c["items"][0]["annotations"][0].update(type="star"),
            "annotations[0]: expected a list of numbers",
        ),
        (
            lambda c: c["items"][0]["annotations"][0].update(points=[1, 2, 3]),
            "annotations[0]: type is 'polygon' with 3",
        ),
        (lambda c: c["items"][0]["annotations"][3]["rle"].update(size=[1, 1]), "annotations[3]: rle is invalid"),
        (lambda c: c["categories"]["label"]["labels"][0].pop("name"), "categories.label.labels[0]: name is None"),
        (lambda c: c["items"][0]["image"].update(size=[1e9, 2]), "items[0]: image.size is [1000000000.0, 2]"),
        (
            lambda c: c["items"][0]["annotations"][0].update(group={}),
            "annotations[0]: z_order and group are [3, {}]",
        ),
        (lambda c: c.pop("items"), "expected categories.label.labels and items"),
    ],
)
def test_invalid_datumaro(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[dict], object], message: str
) -> None:
    draw_image(tmp_path / "images/default/a.jpg")
    draw_image(tmp_path / "images/default/sub/b.png")
    content = datumaro()
    change(content)
    path = save(tmp_path / "annotations/default.json", content)
    assert message in refused(capsys, tmp_path / "out", "datumaro", path)
