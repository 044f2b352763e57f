"""Tests of `refine import` for annotation tools: files written by hand, masks by Pillow and pycocotools."""

import base64
import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.converted import SIZE, convert, draw_image, draw_mask, refused, same_objects
from PIL import Image
from pycocotools import mask as rle

SQUARE = [[10, 10], [40, 10], [40, 40], [10, 40]]
TRIANGLE = [[50.5, 20.25], [75, 35], [50.5, 55]]
DISC = draw_mask("ellipse", 5, 42, 22, 58)
LEFT, TOP = 5, 42
SMALL = DISC[42:59, 5:23]
"""The disc without empty margins."""


def mask_of(*polygons: list[list[float]]) -> np.ndarray:
    flat = [np.ravel(points).tolist() for points in polygons]
    return rle.decode(rle.merge(rle.frPyObjects(flat, *SIZE))) > 0


def png(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


def runs(mask: np.ndarray, order: str = "C") -> list[int]:
    """Run lengths of 0 and 1 by turns, beginning with 0."""
    flat = mask.ravel(order=order).astype(int)
    ends = np.r_[np.flatnonzero(np.diff(flat)) + 1, flat.size]
    counts = np.diff(np.r_[0, ends]).tolist()
    return [0, *counts] if flat[0] else counts


def save(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def labelme(folder: Path, change: Callable[[dict], object] = lambda content: None, name: str = "a.png") -> Path:
    image = draw_image(folder / name)
    shapes = [
        {"label": "cat", "points": SQUARE, "shape_type": "polygon", "group_id": 4},
        {"label": "cat", "points": [[60, 2], [70, 12]], "shape_type": "rectangle", "group_id": 4},
        {"label": "dog", "points": TRIANGLE, "shape_type": "polygon", "group_id": None},
        {
            "label": "dog",
            "points": [[LEFT, TOP], [LEFT + SMALL.shape[1] - 1, TOP + SMALL.shape[0] - 1]],
            "shape_type": "mask",
            "mask": base64.b64encode(png(SMALL.astype(np.uint8))).decode(),
        },
        {"label": "dog", "points": [[3, 3], [6, 7]], "shape_type": "circle"},
        {"label": "dog", "points": [[1, 1]], "shape_type": "point"},
        {"label": "__ignore__", "points": [[70, 40], [79, 59]], "shape_type": "rectangle"},
    ]
    content = {
        "version": "5.4.1",
        "flags": {},
        "shapes": shapes,
        "imagePath": image.name,
        "imageData": None,
        "imageHeight": SIZE[0],
        "imageWidth": SIZE[1],
    }
    change(content)
    return save(image.with_suffix(".json"), content)


def test_labelme(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labelme(tmp_path / "data")

    def embed(content: dict) -> None:
        content["imagePath"] = "gone.jpg"
        content["imageData"] = base64.b64encode((tmp_path / "data/more/b.png").read_bytes()).decode()
        content["shapes"] = content["shapes"][:1]
        del content["imageHeight"], content["imageWidth"], content["shapes"][0]["shape_type"]  # an early version

    labelme(tmp_path / "data/more", embed, "b.png")
    (tmp_path / "data/more/b.png").rename(tmp_path / "b.png")
    save(tmp_path / "data/other.json", {"something": "else"})
    found = convert(capsys, tmp_path / "out", "labelme", tmp_path / "data", "--background", "rest", check=False)
    assert list(found.categories) == ["cat", "dog", "rest"]
    rectangle = mask_of([[60, 2], [70, 2], [70, 12], [60, 12]])
    y, x = np.mgrid[:60, :80] + 0.5
    circle = np.hypot(x - 3, y - 3) <= 5
    assert same_objects(found.masks("a.png", "cat"), [mask_of(SQUARE) | rectangle])
    assert same_objects(found.masks("a.png", "dog"), [mask_of(TRIANGLE), DISC, circle])
    ignored = mask_of([[70, 40], [79, 40], [79, 59], [70, 59]])
    assert ((found.maps["a.png"] == 0) == ignored).all()
    assert same_objects(found.masks("more/b.jpg", "cat"), [mask_of(SQUARE)])
    assert (tmp_path / "out/images/more/b.jpg").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert "skipped: 1 × point (no area)" in found.output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["shapes"][0].pop("label"), "shapes[0]: has no label"),
        (lambda c: c["shapes"][0].update(points=[[1, 2]]), "shapes[0]: the polygon is invalid"),
        (lambda c: c["shapes"][0].update(points=[[1, 2], [3, float("nan")], [4, 5]]), "shapes[0]: the polygon"),
        (lambda c: c["shapes"][1].update(points=[[1, 2]]), "shapes[1]: expected two points"),
        (lambda c: c["shapes"][3].update(mask="!"), "shapes[3]: mask: is not base64"),
        (lambda c: c["shapes"][3].update(mask="aaaa"), "shapes[3]: is not a label image"),
        (
            lambda c: c["shapes"][3].update(points=[[70, 42], [90, 60]]),
            "shapes[3]: a mask of 18 × 17 pixels at (70",
        ),
        (lambda c: c["shapes"][4].update(points=[[3, 3], [3, 3]]), "shapes[4]: the ellipse"),
        (lambda c: c["shapes"][0].update(shape_type="star"), "shapes[0]: shape_type 'star'"),
        (lambda c: c.update(imagePath="../../etc/passwd"), "imagePath: the name '../../etc/passwd' leads out"),
        (lambda c: c.update(imagePath="gone.png"), "imagePath: 'gone.png' does not exist"),
        (lambda c: c.update(imageWidth=None), "imageHeight and imageWidth are [60, None]"),
        (lambda c: c.update(imageWidth=10**9), "imageHeight and imageWidth are [60, 1000000000]"),
        (lambda c: c["shapes"][0].update(group_id=[]), "shapes[0]: group_id is []"),
    ],
)
def test_invalid_labelme(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[dict], object], message: str
) -> None:
    file = labelme(tmp_path / "data", change)
    if "gone" in message:
        (tmp_path / "data/a.png").unlink()
    line = refused(capsys, tmp_path / "out", "labelme", tmp_path / "data")
    assert message in line
    assert line.startswith(str(file))


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


def packed(mask: np.ndarray) -> list[int]:
    """Encode a mask as the opacity of RGBA pixels in @thi.ng/rle-pack, with repeated and literal runs."""
    values = np.repeat(np.where(mask, 255, 0).astype(np.uint8).ravel(), 4)
    bits = f"{len(values):032b}{7:05b}{3:04b}{7:04b}{11:04b}{15:04b}"
    widths = [4, 8, 12, 16]
    position = 0
    while position < len(values):
        same = np.flatnonzero(values[position:] != values[position])
        length = min(int(same[0]) if len(same) else len(values) - position, 2**16)
        if position % 3 == 0 and length > 5:  # a few values one by one, which decoders must read as well
            literal = values[position : position + 5]
            bits += "0" + f"{0:02b}" + f"{4:04b}" + "".join(f"{v:08b}" for v in literal)
            position += 5
            continue
        kind = next(k for k, width in enumerate(widths) if length <= 2**width)
        bits += "1" + f"{kind:02b}" + f"{length - 1:0{widths[kind]}b}" + f"{values[position]:08b}"
        position += length
    bits += "0" * (-len(bits) % 8)
    return [int(bits[k : k + 8], 2) for k in range(0, len(bits), 8)]


def label_studio() -> list[dict]:
    def result(kind: str, label: str, **value: Any) -> dict:
        size = {"original_width": SIZE[1], "original_height": SIZE[0], "image_rotation": 0}
        return size | {"type": kind, "value": value | {kind: [label]}}

    percent = [[x / 0.8, y / 0.6] for x, y in SQUARE]
    results = [
        result("polygonlabels", "cat", points=percent, closed=True),
        result("brushlabels", "dog", format="rle", rle=packed(DISC)),
        result("rectanglelabels", "dog", x=62.5, y=50, width=25, height=10, rotation=90),
        result("ellipselabels", "dog", x=75, y=25, radiusX=10, radiusY=5, rotation=0),
        {"type": "choices", "value": {"choices": ["good"]}},
    ]
    cancelled = {"was_cancelled": True, "result": []}
    return [
        {"data": {"image": "/data/upload/1/0123abcd-a%20b.jpg"}, "annotations": [cancelled, {"result": results}]},
        {"data": {"image": "s3://bucket/c.jpg"}, "annotations": [{"result": []}]},
        {"data": {"image": "/data/local-files/?d=x/d.jpg"}, "annotations": []},
    ]


def test_label_studio(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw_image(tmp_path / "images/a b.jpg")
    draw_image(tmp_path / "images/c.jpg")
    path = save(tmp_path / "export.json", label_studio())
    found = convert(capsys, tmp_path / "out", path, check=False)
    assert same_objects(found.masks("a b.jpg", "cat"), [mask_of(SQUARE)])
    y, x = np.mgrid[:60, :80] + 0.5
    ellipse = ((x - 60) / 8) ** 2 + ((y - 15) / 3) ** 2 <= 1
    turned = mask_of([[50, 30], [50, 50], [44, 50], [44, 30]])  # clockwise about the upper left corner
    assert same_objects(found.masks("a b.jpg", "dog"), [DISC, ellipse, turned])
    assert not found.maps["c.jpg"].any()
    assert "1 tasks are not annotated" in found.output
    assert "skipped: 1 × choices (no labelled area)" in found.output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r[1]["value"].update(rle=packed(DISC)[:-9]), "result[1]: rle is invalid"),
        (lambda r: r[1]["value"].update(rle=[300]), "result[1]: rle is invalid (expected bytes)"),
        (lambda r: r[1]["value"].update(rle=[]), "result[1]: rle is invalid"),
        (lambda r: r[1]["value"].update(rle=packed(DISC[:, :40])), "expected 19200 values of 8 bits, got 9600"),
        (lambda r: r[0].update(original_width=81), "result[0]: original_height and original_width are [60, 81]"),
        (lambda r: r[0].update(image_rotation=90), "result[0]: image_rotation is 90"),
        (lambda r: r[0]["value"].update(polygonlabels=["a", "b"]), "polygonlabels is ['a', 'b']; expected one"),
        (lambda r: r[0]["value"].update(points=None), "result[0]: the polygon is invalid"),
        (lambda r: r[2]["value"].pop("x"), "result[2]: value is invalid ('x')"),
    ],
)
def test_invalid_label_studio(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[list], object], message: str
) -> None:
    draw_image(tmp_path / "a b.jpg")
    tasks = label_studio()[:1]
    change(tasks[0]["annotations"][1]["result"])
    assert message in refused(capsys, tmp_path / "out", "labelstudio", save(tmp_path / "x.json", tasks))


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


def supervisely(folder: Path, change: Callable[[list], object] = lambda objects: None) -> Path:
    draw_image(folder / "ds/img/a.jpg")
    opaque = np.zeros((*SMALL.shape, 4), np.uint8)
    opaque[SMALL] = 255
    objects = [
        {
            "classTitle": "cat",
            "geometryType": "polygon",
            "points": {"exterior": SQUARE, "interior": [[[15, 15], [20, 15], [20, 20], [15, 20]]]},
        },
        {
            "classTitle": "dog",
            "geometryType": "bitmap",
            "bitmap": {"data": base64.b64encode(zlib.compress(png(opaque))).decode(), "origin": [LEFT, TOP]},
        },
        {
            "classTitle": "dog",
            "geometryType": "rectangle",
            "points": {"exterior": [[70, 12], [60, 2]], "interior": []},
        },
        {"classTitle": "dog", "geometryType": "point", "points": {"exterior": [[1, 1]], "interior": []}},
    ]
    change(objects)
    save(
        folder / "meta.json",
        {"classes": [{"title": t, "shape": "any", "color": "#FF0000"} for t in ("dog", "cat")]},
    )
    size = {"height": SIZE[0], "width": SIZE[1]}
    save(folder / "ds/ann/a.jpg.json", {"description": "", "tags": [], "size": size, "objects": objects})
    return folder


def test_supervisely(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = convert(capsys, tmp_path / "out", supervisely(tmp_path / "project"))
    hole = mask_of([[15, 15], [20, 15], [20, 20], [15, 20]])
    assert same_objects(found.masks("a.jpg", "cat"), [mask_of(SQUARE) & ~hole])
    rectangle = mask_of([[60, 2], [70, 2], [70, 12], [60, 12]])
    assert same_objects(found.masks("a.jpg", "dog"), [DISC, rectangle])
    assert found.categories == {"dog": (1, 1), "cat": (2, 1)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o: o[0].update(classTitle="cow"), "objects[0]: classTitle 'cow' is not in meta.json"),
        (lambda o: o[0].update(classTitle=[]), "objects[0]: classTitle [] is not in meta.json"),
        (lambda o: o[1]["bitmap"].update(data="aaaa"), "objects[1]: the bitmap is damaged"),
        (lambda o: o[1]["bitmap"].pop("origin"), "objects[1]: geometryType 'bitmap' is unknown or incomplete"),
        (lambda o: o[2]["points"].update(exterior=[[1, 2]]), "objects[2]: geometryType 'rectangle' is unknown"),
    ],
)
def test_invalid_supervisely(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[list], object], message: str
) -> None:
    assert message in refused(capsys, tmp_path / "out", supervisely(tmp_path / "project", change))
