"""Tests of `refine import` for LabelMe: files written by hand, masks by Pillow and pycocotools."""

import base64
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.annotated import DISC, LEFT, SMALL, SQUARE, TOP, TRIANGLE, mask_of, png, save
from helpers.converted import SIZE, convert, draw_image, refused, same_objects


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


def test_the_reserved_background_is_stuff(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labelme(tmp_path / "data", lambda content: content["shapes"][2].update(label="_background_"))
    found = convert(capsys, tmp_path / "out", "labelme", tmp_path / "data", check=False)
    assert {name: bool(each[1]) for name, each in found.categories.items()} == {
        "_background_": False,
        "cat": True,
        "dog": True,
    }


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
