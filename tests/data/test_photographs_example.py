"""examples/photographs.py: sets that each label a part become one, and the detector's classes fit the remap."""

import json
import runpy
from pathlib import Path

import pytest

from refine.data.remap import read_remap
from refine.structures import Categories
from refine.training.config import load_run

REPOSITORY = Path(__file__).resolve().parents[2]
PERSON = {"id": 1, "name": "person", "isthing": 1, "supercategory": "person"}
SKY = {"id": 187, "name": "sky-other-merged", "isthing": 0, "supercategory": "sky"}
PAPER = {"id": 195, "name": "paper-merged", "isthing": 0, "supercategory": "raw-material"}
BACKGROUND = {"id": 201, "name": "background-other", "isthing": 0, "supercategory": "background"}


def write_set(folder: Path, categories: list[dict], **splits: list[int]) -> None:
    folder.mkdir(parents=True)
    for split, ids in splits.items():
        images = [{"id": n, "file_name": f"{n}.jpg", "height": 8, "width": 8} for n in ids]
        annotations = [{"image_id": n, "file_name": f"{n}.png", "segments_info": []} for n in ids]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"panoptic_{split}.json").write_text(json.dumps(content))


@pytest.fixture
def example():
    return runpy.run_path(str(REPOSITORY / "examples" / "photographs.py"))


def test_sets_become_one(tmp_path, example, monkeypatch, capsys):
    write_set(tmp_path / "coco_panoptic", [PERSON, SKY, PAPER], train=list(range(10, 20)), val=[5, 6])
    write_set(tmp_path / "coco_things_512", [PERSON, BACKGROUND], train=[10, 11, 30], val=[5, 6])
    write_set(tmp_path / "ccp_persons_448", [PERSON], train=[5, 10])
    write_set(tmp_path / "voc_things_400", [PERSON], train=[], val=[7])
    out = tmp_path / "out"
    sets = ["coco_panoptic=2", "coco_things_512", "ccp_persons_448", "voc_things_400"]
    monkeypatch.setattr("sys.argv", ["photographs.py", "--coco", str(tmp_path), "--out", str(out), "--sets", *sets])
    example["main"]()
    content = {split: json.loads((out / f"{split}.json").read_text()) for split in ("train", "tune", "val", "voc")}
    ids = {split: [image["id"] for image in c["images"]] for split, c in content.items()}
    assert ids["tune"] == [10, 15]
    assert ids["val"] == [5, 6]
    assert ids["voc"] == [7]
    # Twice the eight that are left of the first set, of the second what is new, and the third under its own ids.
    assert len(ids["train"]) == len(set(ids["train"])) == 2 * 8 + 1 + 2
    assert not {10, 15} & set(ids["train"])
    files = [image["file_name"] for image in content["train"]["images"]]
    assert files.count("coco_panoptic/images/train/11.jpg") == 2
    assert "coco_things_512/images/train/10.jpg" not in files
    assert "ccp_persons_448/images/train/10.jpg" in files
    for c in content.values():
        assert [a["image_id"] for a in c["annotations"]] == [image["id"] for image in c["images"]]
    assert "train.json: 19 photographs" in capsys.readouterr().out
    source = Categories.from_json(content["train"]["categories"])
    coarse = read_remap(out / "remap.json", source)
    names = [c.name for c in coarse.categories]
    labels = {c.name: coarse.label(c.id) for c in source}
    assert [names[labels[n]] for n in ("person", "sky-other-merged", "paper-merged")] == [
        "person",
        "sky",
        "furnishing",
    ]
    assert labels["background-other"] == len(names)  # unnamed stuff
    own = read_remap(out / "remap_133.json", source)
    assert [c.name for c in own.categories] == ["person", "sky-other-merged", "paper-merged"]
    assert own.label(201) == 3


def test_classes_of_the_detector_are_those_of_the_remap(example):
    """COCO's 80 things by supercategory, in the order of their ids."""
    path = REPOSITORY / "refine" / "checkpoint" / "convert" / "coco_categories.json"
    things = sorted((c for c in json.loads(path.read_text()) if c["isthing"]), key=lambda c: c["id"])
    expected = [example["COARSE"][c["supercategory"], 1] - 1 for c in things]
    detector = load_run(REPOSITORY / "configs" / "photographs.yaml").model.detector
    assert detector is not None
    assert detector.labels == expected
