"""Tests of the COCO panoptic reader: classes, crowds, void and errors."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from helpers.drawn_data import IDS, SEGMENTS, write_coco
from helpers.loaded import CAR, CAT, CLASSES, classes, load
from helpers.planted_faults import IN_JSON
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from refine.data.build import build_dataset
from refine.data.check.dataset import check_dataset
from refine.data.coco_panoptic import CocoPanoptic
from refine.data.config import DatasetConfig
from refine.errors import RefineError
from refine.files import write_json
from refine.formats.raw import ImageOptions
from refine.structures import VOID


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
