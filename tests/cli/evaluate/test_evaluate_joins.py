"""`refine evaluate` on files whose images or categories have other ids: they are joined by name, or an error."""

import json
import shutil

import numpy as np
import pytest
from helpers.evaluated import MAP, edit, evaluate, of_segment

from refine.formats.id_png import write_png


def change_ids(content, new):
    for image in content["images"]:
        image["id"] = new(image["id"])
    for annotation in content["annotations"]:
        annotation["image_id"] = new(annotation["image_id"])


def test_images_with_permuted_ids_are_joined_by_name(files, capsys):
    write_png(files / "pred/2.png", np.where(MAP == 1, 0, MAP))  # so that the images differ
    edit(files / "pred.json", lambda c: c["annotations"][1]["segments_info"].pop(0))
    assert evaluate(files) == 0
    before = json.loads((files / "result.json").read_text())
    assert "notes" not in before
    edit(files / "pred.json", lambda c: change_ids(c, lambda i: 3 - i))
    assert evaluate(files) == 0
    assert "note: " in capsys.readouterr().out
    after = json.loads((files / "result.json").read_text())
    assert after.pop("notes")[0].endswith("gt.json: matched by file name")
    assert after == before


def test_images_with_other_ids_are_joined_by_name(files):
    edit(files / "gt.json", lambda c: change_ids(c, lambda i: i + 40))
    assert evaluate(files) == 0
    assert json.loads((files / "result.json").read_text())["All"]["pq"] == 1


@pytest.mark.parametrize(
    ("of_gt", "of_pred", "unnamed"),
    [
        (("x/0.jpg", "y/0.jpg"), ("x/0.jpg", "y/0.jpg"), ()),
        (("val/x/0.jpg", "val/y/0.jpg"), ("x/0.png", "y/0.png"), ()),
        (("0.jpg", "0.png"), ("0.jpg", "0.png"), ()),
        (("a.jpg", "b.jpg"), ("a.jpg", "b.jpg"), ("pred.json",)),
        (("a.jpg", "b.jpg"), ("a.jpg", "b.jpg"), ("gt.json", "pred.json")),
    ],
    ids=["subfolders", "another folder", "suffixes", "PNGs of the predictions", "PNGs of both"],
)
def test_images_with_permuted_ids_are_joined_by_any_name(files, of_gt, of_pred, unnamed):
    write_png(files / "pred/2.png", np.where(MAP == 1, 0, MAP))  # so that the images differ
    edit(files / "pred.json", lambda c: c["annotations"][1]["segments_info"].pop(0))
    assert evaluate(files) == 0
    before = json.loads((files / "result.json").read_text())["All"]

    def name(side, names):
        def change(content):
            for image, annotation, name in zip(content["images"], content["annotations"], names, strict=True):
                image["file_name"] = name
                png = f"{name}.png" if name.startswith("0") else f"{name[:-4]}.png"
                (files / side / png).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(files / side / annotation["file_name"], files / side / png)
                annotation["file_name"] = png

        edit(files / f"{side}.json", change)

    name("gt", of_gt)
    name("pred", of_pred)
    edit(files / "pred.json", lambda c: change_ids(c, lambda i: 3 - i))
    for side in unnamed:
        edit(files / side, lambda c: c.pop("images"))
    assert evaluate(files) == 0
    result = json.loads((files / "result.json").read_text())
    assert result["All"] == before
    assert "matched by file name" in result["notes"][0]


def test_pngs_named_by_ids_are_not_used_to_join(files):
    for side in ("gt", "pred"):
        edit(files / f"{side}.json", lambda c: c["images"].reverse())
    edit(files / "gt.json", lambda c: [i.update(file_name=f"{3 - i['id']}.jpg") for i in c["images"]])
    edit(files / "pred.json", lambda c: c.pop("images"))
    write_png(files / "gt/2.png", 3 - MAP)
    write_png(files / "pred/2.png", 3 - MAP)
    assert evaluate(files) == 0
    assert json.loads((files / "result.json").read_text())["All"]["pq"] == 1


def test_conflicting_names_are_an_error(files, capsys):
    for side, names in (("gt", ("x/0.jpg", "y/0.jpg")), ("pred", ("y/0.jpg", "z/0.jpg"))):
        edit(files / f"{side}.json", lambda c, n=names: [i.update(file_name=n[i["id"] - 1]) for i in c["images"]])
    assert evaluate(files) == 1
    assert "pred.json: image 1 is 'y/0.jpg', but 'x/0.jpg' in" in capsys.readouterr().err


def test_an_id_of_another_image_is_an_error(files, capsys):
    edit(files / "pred.json", lambda c: c["images"][0].update(file_name="7.jpg"))
    assert evaluate(files) == 1
    assert "pred.json: image 1 is '7.jpg', but '1.jpg' in" in capsys.readouterr().err


def test_categories_with_other_ids_are_joined_by_name(files):
    def change(content):
        for category in content["categories"]:
            category["id"] = 13 - category["id"]
        for annotation in content["annotations"]:
            for info in annotation["segments_info"]:
                info["category_id"] = 13 - info["category_id"]

    edit(files / "pred.json", change)
    assert evaluate(files) == 0
    result = json.loads((files / "result.json").read_text())
    assert result["All"]["pq"] == 1
    assert "matched by name ('cat', 'sky')" in result["notes"][0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "dog"}, "pred.json: category 4 is 'dog' (thing), but category 4 is 'cat' (thing) in"),
        ({"isthing": 0}, "pred.json: category 4 is 'cat' (stuff), but category 4 is 'cat' (thing) in"),
    ],
)
def test_conflicting_categories_are_an_error(files, capsys, change, words):
    edit(files / "pred.json", lambda c: c["categories"][0].update(change))
    assert evaluate(files) == 1
    assert words in capsys.readouterr().err


def test_a_category_missing_in_the_ground_truth_is_an_error_only_if_used(files, capsys):
    edit(files / "pred.json", lambda c: c["categories"].append({"id": 5, "name": "dog", "isthing": 1}))
    assert evaluate(files) == 0
    edit(files / "pred.json", of_segment(category_id=5))
    assert evaluate(files) == 1
    assert "segment 1: category 'dog' (thing) is not in" in capsys.readouterr().err
