"""Tests of `refine import` for Label Studio: files written by hand, masks by Pillow and pycocotools."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.annotated import DISC, SQUARE, mask_of, save
from helpers.converted import SIZE, convert, draw_image, refused, same_objects


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
