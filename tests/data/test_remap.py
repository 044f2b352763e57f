"""Tests of changed categories: classes that are renamed, merged, left out or without a name, and errors."""

from pathlib import Path

import pytest
from helpers.drawn_data import write_coco
from helpers.loaded import CAR, CAT, CLASSES, GRASS, ROAD, classes, load

from refine.data.remap import read_remap
from refine.errors import RefineError
from refine.files import write_json
from refine.structures import VOID, Categories


def _remap(tmp_path: Path, target: dict[str, int | str | None]) -> Path:
    path = tmp_path / "remap.json"
    categories = [
        {"id": 1, "name": "object", "isthing": 1},
        {"id": 2, "name": "ground", "isthing": 0},
        {"id": 3, "name": "other", "isthing": 0},
    ]
    write_json(path, {"categories": categories, "map": target})
    return path


def test_remap_merges_stuff_keeps_things_separate_and_drops(tmp_path: Path) -> None:
    files = write_coco(tmp_path)
    remap = _remap(tmp_path, {"17": 1, "3": 1, "200": 2, "105": 2})
    dataset = load(files, remap=remap)
    assert [c.name for c in dataset.categories] == ["object", "ground", "other"]
    _, segments = dataset[0]
    expected = [[VOID if c == VOID else int(c in (GRASS, ROAD)) for c in row] for row in CLASSES]
    assert classes(segments) == expected
    grounds = segments.index[segments.labels[segments.index.long()] == 1]
    assert len(grounds[grounds >= 0].unique()) == 1  # merged into one segment
    assert len(segments.targets(1, 0, "")) == 2
    _, segments = load(files, remap=_remap(tmp_path, {"17": None, "3": 1, "200": None, "105": 3}))[0]
    new = {CAR: 0, CAT: VOID, GRASS: 2, ROAD: VOID, VOID: VOID}
    assert classes(segments) == [[new[c] for c in row] for row in CLASSES]


def test_remap_to_unnamed_stuff(tmp_path: Path) -> None:
    """Unnamed stuff is num_classes in training and void in evaluation."""
    files = write_coco(tmp_path)
    dataset = load(files, remap=_remap(tmp_path, {"17": 1, "3": None, "200": "stuff", "105": 2}))
    _, segments = dataset[0]
    unnamed = len(dataset.categories)
    new = {CAR: VOID, CAT: 0, GRASS: 1, ROAD: unnamed, VOID: VOID}
    assert classes(segments) == [[new[c] for c in row] for row in CLASSES]
    targets = segments.targets(1, 0, "")
    assert targets.labels.tolist() == [0]
    assert targets.sem_seg.tolist() == classes(segments)
    assert segments.without_small_things(1, 100).index.max() >= 0  # unnamed stuff is not a thing
    measured = new | {ROAD: VOID}
    assert classes(segments.named(unnamed)) == [[measured[c] for c in row] for row in CLASSES]


def test_crowds_remapped_to_stuff_are_not_crowds(tmp_path: Path) -> None:
    """The metric would otherwise ignore the whole region."""
    files = write_coco(tmp_path)
    files.content["annotations"][0]["segments_info"][1]["iscrowd"] = 1
    _, segments = load(files, remap=_remap(tmp_path, {"17": 2, "3": 1, "200": 2, "105": 2}))[0]
    shown = segments.index[segments.index >= 0].unique().long()
    assert sorted(segments.labels[shown].tolist()) == [0, 1]
    assert not segments.iscrowd.any()


def test_invalid_remaps_raise(tmp_path: Path) -> None:
    files = write_coco(tmp_path)
    good = {"17": 1, "3": 1, "200": 2, "105": 2}
    missing = {k: v for k, v in good.items() if k != "3"}
    for target, message in (
        (missing, r"map: category 3 \(car\) is missing; map it to an id or to null"),
        (good | {"3": 9}, "map: 3 -> 9: no such id in `categories`"),
        (good | {"200": 1}, "map: road is stuff and cannot become the thing 1"),
        (good | {"3": "stuff"}, r"map: 3 -> 'stuff': car is a thing; map it to one or to null"),
    ):
        with pytest.raises(RefineError, match=message):
            load(files, remap=_remap(tmp_path, target))
    write_json(
        tmp_path / "things.json",
        {
            "categories": [{"id": 1, "name": "object", "isthing": 1}],
            "map": {"17": 1, "3": 1, "105": None, "200": "stuff"},
        },
    )
    with pytest.raises(RefineError, match="map: 200 -> 'stuff': `categories` has no stuff"):  # an infinite loss
        load(files, remap=tmp_path / "things.json")
    for content in ([], {"map": {}}, {"categories": 5, "map": {}}, {"categories": [], "map": []}):
        write_json(tmp_path / "remap.json", content)
        with pytest.raises(RefineError, match="expected `categories`"):
            load(files, remap=tmp_path / "remap.json")


def test_supercategories_become_categories(tmp_path: Path) -> None:
    source = Categories.from_json(write_coco(tmp_path).content["categories"])
    remap = read_remap("supercategory", source)
    assert [c.name for c in remap.categories] == ["animal", "vehicle", "ground"]
    assert [remap.label(i) for i in (17, 3, 200, 105)] == [0, 1, 2, 2]
