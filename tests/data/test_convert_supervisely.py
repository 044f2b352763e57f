"""Tests of `refine import` for Supervisely: files written by hand, masks by Pillow and pycocotools."""

import base64
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.annotated import DISC, LEFT, SMALL, SQUARE, TOP, png, save
from helpers.converted import SIZE, convert, draw_image, refused, same_objects


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
        {
            "classTitle": "cat",
            "geometryType": "polygon",
            "points": {"exterior": [[60, 50], [62.5, 50.5], [64, 50]], "interior": []},
        },
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
    square, rectangle, line = np.zeros((3, *SIZE), bool)  # corners are pixels, which belong to the figure
    square[10:41, 10:41] = True
    square[15:21, 15:21] = False
    rectangle[2:13, 60:71] = True
    line[50, 60:65] = True
    assert same_objects(found.masks("a.jpg", "cat"), [square, line])
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
        (lambda o: o[0]["points"].update(exterior=[[1, 2], [3]]), "objects[0]: the points are invalid"),
        (lambda o: o[0]["points"].update(interior=[[[1, 2e9]]]), "objects[0]: interior: the points are invalid"),
        (lambda o: o[2]["points"].update(exterior=[["a", 2], [3, 4]]), "objects[2]: the points are invalid"),
    ],
)
def test_invalid_supervisely(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[list], object], message: str
) -> None:
    assert message in refused(capsys, tmp_path / "out", supervisely(tmp_path / "project", change))
