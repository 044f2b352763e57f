"""Tests of the COCO panoptic reader: classes, crowds, void, remaps and errors."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from helpers.drawn_data import IDS, SEGMENTS, Files, write_coco
from helpers.planted_faults import IN_JSON
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from refine.data.build import build_dataset
from refine.data.check.dataset import check_dataset
from refine.data.coco_panoptic import CocoPanoptic
from refine.data.config import DatasetConfig
from refine.data.remap import read_remap
from refine.data.segments import SegmentMap
from refine.errors import RefineError
from refine.files import write_json
from refine.formats.raw import ImageOptions
from refine.structures import VOID, Categories

CAR, CAT, GRASS, ROAD = range(4)
# The drawn map as class indices.
CLASSES = [
    [GRASS, GRASS, GRASS, GRASS, GRASS, VOID],
    [GRASS, CAT, CAT, GRASS, GRASS, VOID],
    [GRASS, CAT, CAT, CAR, CAR, VOID],
    [ROAD, ROAD, ROAD, CAR, CAR, ROAD],
]


def load(files: Files, **more: Any) -> CocoPanoptic:
    files.save()
    return CocoPanoptic(files.images, files.json, files.segments, **more)


def classes(segments: SegmentMap) -> list[list[int]]:
    labels = torch.cat([segments.labels, torch.tensor([VOID])])
    return labels[segments.index.long()].tolist()


def test_image_map_and_targets(tmp_path: Path) -> None:
    dataset = load(write_coco(tmp_path, [IDS, IDS[:3]], [SEGMENTS, SEGMENTS[1:]]))
    assert len(dataset) == 2
    assert dataset.sizes == [(4, 6), (3, 6)]
    assert dataset.name(1) == (11, "1.png")
    image, segments = dataset[0]
    assert (image.dtype, tuple(image.shape)) == (torch.uint8, (3, 4, 6))
    assert image[:, 2, 5].tolist() == [20, 50, 0]
    assert segments.index.dtype == torch.int32
    assert classes(segments) == CLASSES
    targets = segments.targets(dataset.categories.num_things, *dataset.name(0))
    assert targets.labels.tolist() == [CAT, CAR]  # in the order of segments_info
    assert targets.boxes.tolist() == [[1, 1, 3, 3], [3, 2, 5, 4]]
    assert targets.sem_seg.tolist() == CLASSES
    cat, car = targets.masks
    np.testing.assert_array_equal(cat, IDS == 300)
    np.testing.assert_array_equal(car, IDS == 70000)
    np.testing.assert_array_equal(targets.owner, np.where(IDS == 300, 0, np.where(IDS == 70000, 1, -1)))
    assert (targets.image_id, targets.file_name) == (10, "0.png")


def test_images_are_in_the_order_of_annotations_and_others_are_skipped(tmp_path: Path) -> None:
    files = write_coco(tmp_path, [IDS] * 3, [SEGMENTS] * 3)
    files.content["annotations"] = files.content["annotations"][2:0:-1]
    dataset = load(files)
    assert [dataset.name(n)[0] for n in range(len(dataset))] == [12, 11]
    assert dataset[0][0][2, 0, 0] == 2


def test_crowds_keep_their_class(tmp_path: Path) -> None:
    files = write_coco(tmp_path)
    files.content["annotations"][0]["segments_info"][1]["iscrowd"] = 1
    _, segments = load(files)[0]
    assert segments.iscrowd.tolist() == [False, True, False, False]
    targets = segments.targets(2, 10, "")
    assert targets.iscrowd.tolist() == [True, False]
    assert targets.sem_seg.tolist() == CLASSES


def test_an_image_may_be_entirely_void(tmp_path: Path) -> None:
    _, segments = load(write_coco(tmp_path, [np.zeros((3, 2), int)], [[]]))[0]
    targets = segments.targets(2, 10, "")
    assert len(targets) == 0
    assert targets.masks.shape == (0, 3, 2)
    assert (targets.sem_seg == VOID).all()


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("annotated", ["shown", "stored"])
def test_images_are_rotated_as_annotated(tmp_path: Path, orientation: int, annotated: str) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    files = write_coco(tmp_path)
    path = files.images / "0.png"
    drawn = Image.open(path)
    drawn.load()
    stored = drawn
    if annotated == "shown":
        undo = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
        turns = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 7: "TRANSVERSE"}
        stored = drawn.transpose(undo.get(orientation) or Image.Transpose[turns[orientation]])
    stored.save(path, exif=exif)
    expected = np.asarray(drawn)
    image, _ = load(files, options=ImageOptions(exif=annotated))[0]
    np.testing.assert_array_equal(image.permute(1, 2, 0), expected)
    if orientation >= 5:  # the size determines the orientation
        image, _ = load(files)[0]
        np.testing.assert_array_equal(image.permute(1, 2, 0), expected)
        assert check_dataset(files.images, files.json, files.segments).ok
        return
    with pytest.raises(RefineError, match=f"0.png: has EXIF orientation {orientation}, .*set exif of the data set"):
        load(files)[0]
    (error,) = check_dataset(files.images, files.json, files.segments).errors
    assert "set exif of the data set" in error.message
    assert check_dataset(files.images, files.json, files.segments, options=ImageOptions(exif="stored")).ok


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


@pytest.mark.parametrize("fault", IN_JSON)
def test_the_first_error_of_check_data_is_raised(tmp_path: Path, fault: str) -> None:
    files = write_coco(tmp_path)
    plant, expected = IN_JSON[fault]
    plant(files)
    with pytest.raises(RefineError) as error:
        load(files)
    assert str(error.value) == f"{files.json}: {expected[0].partition(': ')[2]}"


def test_invalid_images_and_maps_raise(tmp_path: Path) -> None:
    files = write_coco(tmp_path)
    dataset = load(files)
    files.paint(0, np.where(IDS == 300, 301, IDS))
    with pytest.raises(RefineError, match=r"id 301 is not in segments_info of image 10 .*; add it or paint"):
        dataset[0]
    files.paint(0, np.where(IDS == 300, 7, IDS))
    with pytest.raises(RefineError, match=r"image 10: segment 300 has no pixel in .*0_ids.png; drop it"):
        dataset[0]
    files.paint(0, IDS[:3])
    with pytest.raises(RefineError, match=r"0_ids\.png: expected 6 × 4 pixels, got 6 × 3; correct"):
        dataset[0]
    files.paint(0, IDS)
    Image.new("RGB", (7, 4)).save(files.images / "0.png")
    with pytest.raises(RefineError, match=r"0\.png: expected 6 × 4 pixels as in .*, got 7 × 4 pixels"):
        dataset[0]
    (files.images / "0.png").unlink()
    with pytest.raises(RefineError, match="no such file"):
        dataset[0]


def test_invalid_json_raises(tmp_path: Path) -> None:
    files = write_coco(tmp_path)
    files.json.write_text("{'a'")
    with pytest.raises(RefineError, match="is not valid JSON"):
        CocoPanoptic(files.images, files.json, files.segments)
    files.json.write_text("[]")
    with pytest.raises(RefineError, match="expected a mapping, got list; give a COCO panoptic JSON"):
        CocoPanoptic(files.images, files.json, files.segments)


def test_missing_lists_raise(tmp_path: Path) -> None:
    files = write_coco(tmp_path)
    for change in ({"images": {}}, {"categories": None}, {"annotations": 7}):
        write_json(files.json, files.content | change)
        with pytest.raises(RefineError, match=f"has no list `{next(iter(change))}`; give a COCO panoptic JSON"):
            CocoPanoptic(files.images, files.json, files.segments)


@settings(deadline=None, max_examples=40)
@given(data=st.data(), height=st.integers(1, 6), width=st.integers(1, 6))
def test_any_map_is_read_as_written(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, height: int, width: int
) -> None:
    known = data.draw(st.lists(st.integers(1, (1 << 24) - 1), min_size=1, max_size=6, unique=True))
    pixels = data.draw(st.lists(st.sampled_from([0, *known]), min_size=height * width, max_size=height * width))
    ids = np.array(pixels).reshape(height, width)
    category = {i: (17, 3, 200, 105)[n % 4] for n, i in enumerate(known)}
    infos = [{"id": i, "category_id": category[i]} for i in known if (ids == i).any()]
    folder = tmp_path_factory.mktemp("any")
    dataset = load(write_coco(folder, [ids], [infos]))
    _, segments = dataset[0]
    index = segments.index.numpy()
    np.testing.assert_array_equal(np.array([info["id"] for info in infos] + [0])[index], ids)
    assert segments.labels.tolist() == [dataset.categories.index(info["category_id"]) for info in infos]


@pytest.mark.parametrize("name", ["nuclei", "coco_panoptic"])
def test_areas_of_real_images_equal_their_json(shared_dir: Path, name: str) -> None:
    root = shared_dir / "data" / name
    if not root.is_dir():
        pytest.skip(f"no data at {root}")
    import json

    path = root / "panoptic_val.json"
    dataset = CocoPanoptic(root / "images" / "val", path, root / "panoptic_val")
    annotations = json.loads(path.read_text())["annotations"]
    for n in range(0, len(dataset), 20):
        image, segments = dataset[n]
        assert tuple(image.shape[1:]) == dataset.sizes[n]
        infos = annotations[n]["segments_info"]
        areas = torch.bincount(segments.index.flatten().long() + 1, minlength=len(infos) + 1)[1:]
        assert areas.tolist() == [info["area"] for info in infos]
        targets = segments.targets(dataset.categories.num_things, *dataset.name(n))
        things = [i for i in infos if dataset.categories[dataset.categories.index(i["category_id"])].isthing]
        boxes = [[x, y, x + w, y + h] for x, y, w, h in (info["bbox"] for info in things)]
        assert targets.boxes.tolist() == boxes


def test_range_page_and_channel_of_a_data_set(tmp_path):
    """Training, check-data and evaluation scale and choose as `predict --range --page` does."""
    files = write_coco(tmp_path / "data")
    low, high = np.full((4, 6), 1000, np.uint16), np.full((4, 6), 3000, np.uint16)
    low[0, 0] = 0
    name = files.content["images"][0]["file_name"] = "0.tif"
    tifffile.imwrite(files.images / name, np.stack([low, high]), photometric="minisblack")
    files.save()
    fields = {"images": str(files.images), "json": str(files.json), "segments": str(files.segments)}
    with pytest.raises(RefineError, match="2 pages"):
        build_dataset(DatasetConfig(**fields))[0]
    image, _ = build_dataset(DatasetConfig(**fields, page=2, range=(0, 6000)))[0]
    assert image.unique().tolist() == [128]
    image, _ = build_dataset(DatasetConfig(**fields, page=1, range=(0, 2000)))[0]
    assert image.unique().tolist() == [0, 128]
    options = ImageOptions(page=1, range=(0.0, 2000.0))
    paths = (files.images, files.json, files.segments)
    assert not [e for e in check_dataset(*paths, options=options).errors if e.kind == "image file"]
    assert [e for e in check_dataset(*paths).errors if e.kind == "image file"]
    with pytest.raises(RefineError, match=r"data.range is \[5, 5\]; expected two increasing numbers"):
        build_dataset(DatasetConfig(**fields, range=(5, 5)))
