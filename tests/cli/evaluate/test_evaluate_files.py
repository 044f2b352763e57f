"""`refine evaluate` on files: its output, and a one-line error for every invalid input."""

import json
import shutil
import struct
import zlib

import numpy as np
import pytest
import tifffile
import torch
from helpers.evaluated import MAP, edit, evaluate, of_segment

from refine.drawing.series import worst_images
from refine.formats.id_png import read_png, write_png


def test_table_and_json(files, capsys):
    write_png(files / "pred/2.png", np.where(MAP == 1, 0, MAP))  # the second cat is missed
    edit(files / "pred.json", lambda c: c["annotations"][1]["segments_info"].pop(0))
    assert evaluate(files, "--worst", "1") == 0
    printed = capsys.readouterr().out.split("\n")
    assert [line.split() for line in printed if "All" in line or "cat" in line] == [
        ["│", "All", "│", "83.3", "│", "100.0", "│", "83.3", "│", "2", "│"],
        ["│", "cat", "│", "thing", "│", "66.7", "│", "100.0", "│", "66.7", "│", "1", "│", "0", "│", "1", "│"],
    ]
    assert sum(line.startswith("worst: 2.jpg (image 2)") for line in printed) == 1
    result = json.loads((files / "result.json").read_text())
    assert result["All"] == pytest.approx({"pq": 5 / 6, "sq": 1, "rq": 5 / 6, "n": 2})
    assert result["Things"] == pytest.approx({"pq": 2 / 3, "sq": 1, "rq": 2 / 3, "n": 1})
    assert result["Stuff"] == {"pq": 1, "sq": 1, "rq": 1, "n": 1}
    assert result["per_class"]["9"] | {"pq": 1, "sq": 1, "rq": 1} == result["per_class"]["9"]


def test_maps_of_large_images_are_tiffs(files, capsys):
    """As `predict` writes them: of any size, with ids of 32 bits."""
    write_png(files / "pred/2.png", np.where(MAP == 1, 0, MAP))
    edit(files / "pred.json", lambda c: c["annotations"][1]["segments_info"].pop(0))
    assert evaluate(files) == 0
    expected = json.loads((files / "result.json").read_text())
    for side in ("gt", "pred"):
        for n in (1, 2):
            ids = read_png(files / side / f"{n}.png").astype(np.uint32)
            tifffile.imwrite(files / side / f"{n}.tif", np.where(ids == 2, 2**32 - 1, ids), compression="zlib")
            (files / side / f"{n}.png").unlink()

        def rename(content):
            content["images"][0] |= {"height": 200_000, "width": 300_000}  # its map is wrong, not the size
            for n, annotation in enumerate(content["annotations"], 1):
                annotation["file_name"] = f"{n}.tif"
                annotation["segments_info"][-1]["id"] = 2**32 - 1

        edit(files / f"{side}.json", rename)
    capsys.readouterr()
    assert evaluate(files) == 1
    message = f"{files}/gt/1.tif: expected 300000 × 200000 pixels, got 4 × 2"
    assert capsys.readouterr().err.startswith(f"refine: error: {message}")
    for side in ("gt", "pred"):
        edit(files / f"{side}.json", lambda c: c["images"][0].update(height=2, width=4))
    assert evaluate(files) == 0
    assert json.loads((files / "result.json").read_text()) == expected
    content = (files / "pred/2.tif").read_bytes()
    (files / "pred/2.tif").write_bytes(content[:-20])
    assert evaluate(files) == 1
    assert f"{files}/pred/2.tif: " in capsys.readouterr().err
    tifffile.imwrite(files / "pred/2.tif", np.zeros((2, 4), np.float32))
    assert evaluate(files) == 1
    assert "pred/2.tif: expected a grey TIFF of unsigned integers" in capsys.readouterr().err


def test_drawings_of_the_report_that_is_replaced_are_removed(files):
    image = torch.zeros(3, 2, 2, dtype=torch.uint8)
    stale, kept = (worst_images(files / name).write(f"{name}.png", image) for name in ("result.json", "o.json"))
    assert evaluate(files) == 0
    assert (stale.exists(), kept.exists()) == (False, True)


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "gt.json").unlink(), ["gt.json: does not exist", "check the path"]),
        (lambda f: (f / "pred.json").write_text("{]"), ["pred.json: is not valid JSON", "write it again"]),
        (lambda f: (f / "pred.json").write_bytes(b"\xff\xfe{"), ["pred.json: is not valid JSON"]),
        (
            lambda f: (f / "pred.json").write_text("[1]"),
            ["pred.json: expected a mapping, got list"],
        ),
        (lambda f: (f / "pred.json").write_text("{}"), ["pred.json: has no list `annotations`"]),
        (lambda f: edit(f / "gt.json", lambda c: c.pop("categories")), ["gt.json", "`categories`"]),
        (lambda f: edit(f / "gt.json", lambda c: c.update(categories=[3])), ["gt.json: categories[0]"]),
        (lambda f: edit(f / "gt.json", lambda c: c["categories"][0].pop("isthing")), ["gt.json", "isthing"]),
        (lambda f: edit(f / "gt.json", lambda c: c.update(images={})), ["gt.json", "`images`"]),
        (
            lambda f: edit(f / "gt.json", lambda c: c["annotations"][1].pop("file_name")),
            ["annotation of image 2", "file_name"],
        ),
        (lambda f: edit(f / "pred.json", lambda c: c["annotations"].append(None)), ["pred.json: annotations[2]"]),
        (
            lambda f: edit(f / "pred.json", lambda c: c["annotations"].pop()),
            ["pred.json: no prediction for 1 image, ", "image 2"],
        ),
        (lambda f: edit(f / "gt.json", lambda c: c["annotations"].pop()), ["pred.json: image 2 is not in"]),
        (
            lambda f: edit(f / "gt.json", lambda c: c["annotations"].append(c["annotations"][0])),
            ["image 1", "annotations[2] is a duplicate"],
        ),
        (
            lambda f: edit(f / "pred.json", of_segment(area=3)),
            ["pred.json: image 2", "2.png", "segment 1: area is 3"],
        ),
        (lambda f: edit(f / "gt.json", of_segment(area=5)), ["gt.json: image 2", "2.png", "segment 1: area is 5"]),
        (
            lambda f: edit(f / "pred.json", of_segment(id=2)),
            ["pred.json", "image 2: segment 2: ", "both use"],
        ),
        (lambda f: edit(f / "pred.json", of_segment(id=7)), ["pred.json: image 2", "the map has id 1"]),
        (
            lambda f: edit(f / "pred.json", of_segment(category_id=5)),
            ["pred.json", "image 2: segment 1", "category_id 5"],
        ),
        (
            lambda f: edit(f / "pred.json", of_segment(iscrowd=None)),
            ["pred.json", "image 2: segment 1: iscrowd is None"],
        ),
        (lambda f: (f / "pred/2.png").unlink(), ["pred/2.png: cannot be read", "check the path"]),
        (lambda f: shutil.rmtree(f / "gt"), ["/gt: does not exist"]),
        (lambda f: cut(f / "pred/2.png"), ["pred/2.png: is damaged (truncated"]),
        (lambda f: (f / "gt/2.png").write_text("text"), ["gt/2.png: is not a PNG"]),
        (lambda f: write_png(f / "pred/2.png", MAP[:1]), ["pred/2.png: expected 4 × 2 pixels, got 4 × 1"]),
        (lambda f: (f / "result.json").mkdir(), ["result.json: is a folder"]),
    ],
    ids=range(26),
)
def test_invalid_input_is_reported_in_one_line(files, capsys, spoil, words):
    spoil(files)
    before = sorted(files.rglob("*"))
    assert evaluate(files) == 1
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("refine: error: ")
    assert error.count("\n") == 1
    for word in words:
        assert word in error
    assert sorted(files.rglob("*")) == before


def test_inputs_are_not_overwritten(files, capsys):
    before = (files / "pred.json").read_bytes()
    assert evaluate(files, out="pred.json") == 1
    assert "pred.json: is also an input" in capsys.readouterr().err
    assert (files / "pred.json").read_bytes() == before


def test_an_earlier_result_survives_an_error(files):
    (files / "result.json").write_text("earlier")
    cut(files / "gt/2.png")
    assert evaluate(files) == 1
    assert (files / "result.json").read_text() == "earlier"


@pytest.mark.parametrize("wrong", [["--workers", "0"], ["--workers", "two"], ["--worst", "-1"]])
def test_invalid_numbers_are_reported(files, capsys, wrong):
    with pytest.raises(SystemExit) as ended:
        evaluate(files, *wrong)
    assert ended.value.code == 2
    assert "expected an integer" in capsys.readouterr().err


def test_results_do_not_depend_on_the_number_of_workers(files):
    for workers in ("1", "3"):
        assert evaluate(files, "--workers", workers, out=f"{workers}.json") == 0
    assert (files / "1.json").read_bytes() == (files / "3.json").read_bytes()


@pytest.mark.parametrize("name", ["nucleus [tumor]", "cell [/dead]", "a:cat:b", "\x1b[2J\n"])
def test_names_are_printed_without_markup(files, capsys, name):
    for side in ("gt.json", "pred.json"):
        edit(files / side, lambda c: c["categories"][0].update(name=name))
        edit(files / side, lambda c: c["images"][0].update(file_name=f"{name}.jpg"))
    assert evaluate(files) == 0
    assert capsys.readouterr().out.count(name.replace("\x1b", "\\x1b").replace("\n", "\\n")) == 2


def test_a_decompression_bomb_is_rejected_by_its_header(files, capsys):
    header = struct.pack(">IIBBBBB", 2**14, 2**14, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", b"x"), (b"IEND", b""))
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    (files / "pred/2.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    assert evaluate(files) == 1
    assert "expected 1 to 134,217,728 pixels, got 16384 × 16384" in capsys.readouterr().err
