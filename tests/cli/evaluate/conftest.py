"""Files that the tests of `refine evaluate` share."""

import json

import pytest
from helpers.evaluated import CATEGORIES, MAP

from refine.formats.id_png import write_png


@pytest.fixture
def files(tmp_path):
    """Folder with the ground truth of two images and its perfect prediction."""
    for side in ("gt", "pred"):
        (tmp_path / side).mkdir()
        annotations = []
        for n in (1, 2):
            write_png(tmp_path / side / f"{n}.png", MAP)
            entries = [{"id": i, "category_id": c, "iscrowd": 0, "area": 4} for i, c in ((1, 4), (2, 9))]
            annotations.append({"image_id": n, "file_name": f"{n}.png", "segments_info": entries})
        images = [{"id": n, "file_name": f"{n}.jpg", "height": 2, "width": 4} for n in (1, 2)]
        content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
        (tmp_path / f"{side}.json").write_text(json.dumps(content))
    return tmp_path
