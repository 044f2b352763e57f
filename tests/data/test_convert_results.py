"""What `refine predict --save` writes for annotation tools comes back pixel by pixel through `refine import`."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.converted import SIZE, convert, draw_image, same_objects

from refine.formats.regions import Regions
from refine.formats.results.saver import ImageResult
from refine.formats.runs import Runs
from refine.savers import SAVERS, encode
from refine.structures import Categories, Category, PanopticResult, Segment

CATEGORIES = Categories(
    [Category(3, "cell", True), Category(5, "debris & <dust>", True), Category(9, "ground", False)]
)
NAME = "day 1/a.jpg"


@pytest.fixture
def item() -> ImageResult:
    """A result whose segments have holes, several parts and touching corners."""
    rng = np.random.default_rng(0)
    ids = np.kron(rng.integers(0, 8, (12, 16)), np.ones((5, 5), int))
    ids[rng.random(SIZE) < 0.1] = 70_000
    kinds = dict.fromkeys(range(1, 8), 3) | {4: 5, 7: 9, 70_000: 3}
    regions = Regions.of(Runs.from_map(ids))
    segments = [
        Segment(value, kinds[value], kinds[value] != 9, 0.5, area, tuple(box), None)
        for value, area, box in zip(
            *(each.tolist() for each in (regions.values, regions.area, regions.boxes)), strict=True
        )
        if value
    ]
    return ImageResult(PanopticResult(torch.from_numpy(ids.astype(np.int32)), segments, CATEGORIES), NAME)


@pytest.mark.parametrize("name", ["labels", "fiftyone", "cvat", "labelme", "labelstudio"])
def test_saved_results_come_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], item: ImageResult, name: str
) -> None:
    folder, images = tmp_path / "data", tmp_path / "data/images"
    image = draw_image(images / NAME)
    files = dict(encode([SAVERS[name]], item))
    if (joint := SAVERS[name].joint) is not None:
        part = json.loads(next(iter(files.values())))
        entry = {"id": 7, "file_name": NAME, "height": SIZE[0], "width": SIZE[1]}
        files = {joint: b"".join(SAVERS[name].join([(entry, part)], CATEGORIES))}
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    if name == "labelme":
        (folder / "labelme/day 1/a.jpg").symlink_to(image)
    if name == "labelstudio":  # people accept predictions as annotations
        tasks = json.loads((folder / "labelstudio.json").read_text())
        accepted = [{"data": t["data"], "annotations": [{"result": t["predictions"][0]["result"]}]} for t in tasks]
        (folder / "labelstudio.json").write_text(json.dumps(accepted))
    command = {
        "labels": ("labels", images, "--labels", folder / "labels"),
        "fiftyone": ("coco", folder / "fiftyone.json"),
        "cvat": ("cvat", folder / "cvat.xml"),
        "labelme": ("labelme", folder / "labelme"),
        "labelstudio": ("labelstudio", folder / "labelstudio.json", "--images", images / "day 1"),
    }
    found = convert(capsys, tmp_path / "out", *command[name], check=False)
    (image_name,) = found.maps
    for category in CATEGORIES:
        masks = [item.ids == s.id for s in item.result.segments if s.category_id == category.id]
        if name not in ("labels", "fiftyone") or (name == "fiftyone" and category.isthing):
            assert same_objects(found.masks(image_name, category.name), masks)
    if name == "labels":
        things = [item.ids == s.id for s in item.things]
        assert same_objects(found.masks(image_name, "object"), things)
    assert found.counts["lost"] == 0
