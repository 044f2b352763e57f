"""Saved results that `refine import`, whose readers were written for other tools' files, reads again."""

import json

import numpy as np
import pytest
from helpers.results import HEIGHT, WIDTH, make_result
from PIL import Image

from refine.cli.main import main
from refine.structures import rgb_to_id


@pytest.mark.parametrize("name", ["labelme", "cvat", "fiftyone", "labels"])
def test_saved_results_are_imported_pixel_by_pixel(name, tmp_path):
    result, out = make_result(), tmp_path / "out"
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(tmp_path / "images/c.png")
    result.save(tmp_path / "saved", formats=name, file_name="c.png")
    if name == "labelme":
        (tmp_path / "images/c.png").rename(tmp_path / "saved/labelme/c.png")
    words = {
        "labelme": ["labelme", tmp_path / "saved/labelme", "--stuff", "ground"],
        "cvat": ["cvat", tmp_path / "saved/cvat.xml", "--stuff", "ground"],
        "fiftyone": ["coco", tmp_path / "saved/fiftyone.json"],
        "labels": ["labels", tmp_path / "images", "--labels", tmp_path / "saved/labels", "--background", "void"],
    }[name]
    images = [] if name in ("labelme", "labels") else ["--images", tmp_path / "images"]
    assert main(["import", *map(str, [*words, *images]), "-o", str(out)]) == 0
    content = json.loads((out / "panoptic.json").read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    (annotation,) = content["annotations"]
    ids = rgb_to_id(np.asarray(Image.open(out / "segments" / annotation["file_name"])))
    expected = result.segment_ids.numpy()
    found = {}
    for info in annotation["segments_info"]:
        (number,) = np.unique(expected[ids == info["id"]])
        assert np.array_equal(ids == info["id"], expected == number)
        found[int(number)] = names[info["category_id"]]
    wanted = result.segments if name in ("labelme", "cvat") else result.segments[:4]
    assert found == {s.id: "object" if name == "labels" else result.name(s) for s in wanted}
