"""Tests of COCO instance annotations: reading, compared with pycocotools, and matching to segments."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.drawn_data import CATEGORIES, IDS, write_coco
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from refine.data.coco_panoptic import CocoPanoptic
from refine.data.segments import SegmentMap, match_segments
from refine.errors import RefineError
from refine.files import write_json
from refine.formats.instances_json import InstanceFile
from refine.formats.panoptic_json import ImageEntry
from refine.formats.rle import compressed
from refine.structures import VOID, Categories

SIZE = (4, 6)
NAMES = Categories.from_json(CATEGORIES)
LABELS = {3: 0, 17: 1, 105: 2, 200: 3, 8: VOID}


def rle(mask: np.ndarray, compressed: bool = True) -> dict[str, Any]:
    if compressed:
        code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        return {"size": list(mask.shape), "counts": code["counts"].decode()}
    flat = mask.T.ravel().astype(int)
    changes = np.flatnonzero(np.diff(flat)) + 1
    edges = [0, *([0] if flat[0] else []), *changes.tolist(), flat.size]
    return {"size": list(mask.shape), "counts": np.diff(edges).tolist()}


def instance_file(tmp_path: Path, annotations: list[Any], ids: tuple[int, ...] = (10,)) -> InstanceFile:
    write_json(tmp_path / "instances.json", {"annotations": annotations})
    images = {image_id: ImageEntry(f"{image_id}.jpg", SIZE) for image_id in ids}
    return InstanceFile(tmp_path / "instances.json", images, NAMES, LABELS, num_things=2)


def annotation(mask: np.ndarray, **more: Any) -> dict[str, Any]:
    return {"image_id": 10, "category_id": 17, "segmentation": rle(mask), "iscrowd": 0} | more


def test_masks_labels_and_crowds_of_each_image(tmp_path: Path) -> None:
    full, cat = np.ones(SIZE, bool), IDS == 300
    file = instance_file(
        tmp_path,
        [
            annotation(full, image_id=12, category_id=3, iscrowd=1),
            annotation(cat),
            annotation(cat, image_id=99),  # of another data set
            annotation(full, category_id=8),  # dropped by a remap
            annotation(np.zeros(SIZE, bool)),  # empty
            annotation(full, category_id=3, segmentation=rle(full, compressed=False)),
        ],
        (10, 11, 12),
    )
    masks, labels, crowd = file.read(0)
    np.testing.assert_array_equal(masks, [cat, full])  # they overlap
    assert labels.tolist() == [1, 0]
    assert crowd.tolist() == [False, False]
    masks, labels, crowd = file.read(1)
    assert masks.shape == (0, *SIZE)
    assert file.read(2)[2].tolist() == [True]


_CORNER = st.tuples(*[st.integers(-2, 60).map(lambda v: v / 2)] * 2)
_POLYGON = st.lists(_CORNER, min_size=3, max_size=6).map(lambda corners: [v for corner in corners for v in corner])


@settings(deadline=None, max_examples=60)
@given(st.lists(_POLYGON, min_size=1, max_size=3))
@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
def test_polygons_are_rasterised_like_pycocotools(
    tmp_path_factory: pytest.TempPathFactory, polygons: list[list[float]]
) -> None:
    size = (24, 28)
    parts = coco_mask.frPyObjects(polygons, *size)
    expected = coco_mask.decode(coco_mask.merge(parts)).astype(bool)
    path = tmp_path_factory.getbasetemp() / "instances.json"
    write_json(path, {"annotations": [{"image_id": 1, "category_id": 3, "segmentation": polygons}]})
    masks = InstanceFile(path, {1: ImageEntry("1.jpg", size)}, NAMES, LABELS, 2).read(0)[0]
    if expected.any():
        np.testing.assert_array_equal(masks[0], expected)
    else:
        assert len(masks) == 0


def test_invalid_annotations_raise(tmp_path: Path) -> None:
    good = annotation(IDS == 300)
    for bad, message in (
        (7, r"annotations\[0\]: is not a COCO instance annotation"),
        ({"image_id": 10}, r"annotations\[0\]: has no `category_id`"),
        ({"image_id": 10, "category_id": 17}, "has no `segmentation`"),
        (good | {"category_id": 1}, "category_id 1 is not in the panoptic categories; add it there"),
        (good | {"category_id": 200}, "category_id 200 is stuff; instances are things"),
        (good | {"segmentation": []}, r"segmentation is invalid \(it is empty\)"),
        (good | {"segmentation": [[1, 2, 3, 4]]}, "a polygon needs three corners"),
        (good | {"segmentation": "abc"}, "segmentation is invalid"),
        (good | {"segmentation": {"size": [4, 6], "counts": [5, 5]}}, "expected counts of 24 pixels, got 10"),
        (good | {"segmentation": rle(np.ones((3, 3), bool))}, r"expected size \[4, 6\], got \[3, 3\]"),
        (good | {"image_id": 99}, "none belongs to an image of the data set"),
    ):
        with pytest.raises(RefineError, match=message) as error:
            instance_file(tmp_path, [bad])
        assert str(error.value).startswith(str(tmp_path / "instances.json"))
    write_json(tmp_path / "instances.json", [])
    with pytest.raises(RefineError, match="has no list `annotations`"):
        InstanceFile(tmp_path / "instances.json", {}, NAMES, LABELS, 2)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"images": [{"id": 10, "file_name": "val/10.png"}, {"id": 99, "file_name": "x.jpg"}]}, None),
        (
            {"images": [{"id": 10, "file_name": "11.jpg"}]},
            r"images\[0\]: id 10 is '11.jpg', but '10.jpg' in",
        ),
        ({"categories": [{"id": 17, "name": "cat"}, {"id": 1, "name": "dog"}]}, None),
        (
            {"categories": [{"id": 17, "name": "dog"}]},
            r"categories\[0\]: id 17 is 'dog', but 'cat' in the",
        ),
    ],
)
def test_ids_must_denote_the_same_in_both_files(tmp_path: Path, more: dict[str, Any], message: str | None) -> None:
    path = tmp_path / "instances.json"
    write_json(path, {"annotations": [annotation(IDS == 300)]} | more)
    arguments = (path, {10: ImageEntry("10.jpg", SIZE)}, NAMES, LABELS, 2)
    if message is None:
        assert len(InstanceFile(*arguments).read(0)[0]) == 1
    else:
        with pytest.raises(RefineError, match=message):
            InstanceFile(*arguments)


def test_ids_mean_the_same_in_subfolders_too(tmp_path: Path) -> None:
    path, images = tmp_path / "instances.json", {10: ImageEntry("x/0.jpg", SIZE), 11: ImageEntry("y/0.jpg", SIZE)}
    write_json(path, {"annotations": [annotation(IDS == 300)], "images": [{"id": 10, "file_name": "y/0.jpg"}]})
    with pytest.raises(RefineError, match=r"images\[0\]: id 10 is 'y/0.jpg', but 'x/0.jpg' in"):
        InstanceFile(path, images, NAMES, LABELS, 2)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 40))
def test_truncated_compressed_counts_raise(seed: int, height: int, width: int) -> None:
    g = np.random.default_rng(seed)
    mask = g.random((height, width)) < g.choice([0.02, 0.5, 1])
    mask[:, g.integers(width) :] = g.integers(2)
    code = rle(mask)
    np.testing.assert_array_equal(coco_mask.decode(compressed(code, mask.shape)), mask)
    for length in range(len(code["counts"])):
        with pytest.raises(ValueError, match="counts"):
            compressed(code | {"counts": code["counts"][:length]}, mask.shape)


@pytest.mark.parametrize("counts", ["", "~~", "é", "PPPPPPPPP0", "000o", [10**400], ["a"], 5, None])
def test_invalid_counts_raise(tmp_path: Path, counts: Any) -> None:
    with pytest.raises(RefineError, match="segmentation is invalid"):
        instance_file(tmp_path, [annotation(IDS == 300, segmentation={"size": [4, 6], "counts": counts})])


def test_corners_beyond_the_range_of_floats_raise(tmp_path: Path) -> None:
    for corner in (10**400, float("inf")):
        (tmp_path / "instances.json").write_text(
            json.dumps({"annotations": [annotation(IDS == 300, segmentation=[[0, 0, corner, 0, 3, 3]])]})
        )
        with pytest.raises(RefineError, match="segmentation is invalid"):
            InstanceFile(tmp_path / "instances.json", {10: ImageEntry("10.jpg", SIZE)}, NAMES, LABELS, 2)


def test_targets_have_whole_masks_and_owners_from_the_map(tmp_path: Path) -> None:
    """The car extends behind the cat; a second cat is completely hidden."""
    files = write_coco(tmp_path)
    car, cat = np.isin(IDS, (300, 70000)), IDS == 300
    hidden = np.zeros(SIZE, bool)
    hidden[2, 2] = True
    path = tmp_path / "instances.json"
    write_json(path, {"annotations": [annotation(hidden), annotation(car, category_id=3), annotation(cat)]})
    dataset = CocoPanoptic(files.images, files.json, files.segments, instances=path)
    _, segments = dataset[0]
    targets = segments.targets(2, 10, "")
    np.testing.assert_array_equal(targets.masks, [hidden, car, cat])
    assert targets.labels.tolist() == [1, 0, 1]
    assert targets.boxes.tolist() == [[2, 2, 3, 3], [1, 1, 5, 4], [1, 1, 3, 3]]
    np.testing.assert_array_equal(targets.owner, np.where(IDS == 300, 2, np.where(IDS == 70000, 1, -1)))
    plain = CocoPanoptic(files.images, files.json, files.segments)[0][1].targets(2, 10, "")
    np.testing.assert_array_equal(targets.sem_seg, plain.sem_seg)


def test_instances_of_things_remapped_to_stuff_are_skipped(tmp_path: Path) -> None:
    files = write_coco(tmp_path)
    categories = [{"id": 1, "name": "cat", "isthing": 1}, {"id": 2, "name": "rest", "isthing": 0}]
    write_json(tmp_path / "remap.json", {"categories": categories, "map": {"17": 1, "3": 2, "200": 2, "105": None}})
    cat, car = annotation(IDS == 300), annotation(IDS == 70000, category_id=3)
    path = tmp_path / "instances.json"
    write_json(path, {"annotations": [car, cat]})
    more = {"remap": tmp_path / "remap.json", "instances": path}
    dataset = CocoPanoptic(files.images, files.json, files.segments, **more)
    targets = dataset[0][1].targets(1, 10, "")
    np.testing.assert_array_equal(targets.masks, [IDS == 300])
    write_json(path, {"annotations": [cat | {"category_id": 200}]})
    with pytest.raises(RefineError, match="category_id 200 is stuff"):
        CocoPanoptic(files.images, files.json, files.segments, **more)


def test_matching_is_greedy_and_within_class_and_crowd() -> None:
    index = torch.tensor([[0, 0, 0, 1, 1, 2, 2, -1]], dtype=torch.int32)
    segments = SegmentMap(index, torch.tensor([0, 0, 1]), torch.tensor([False, True, False]))

    def match(*instances: tuple[str, int, bool]) -> list[int]:
        masks = torch.tensor([[[pixel == "x" for pixel in row]] for row, _, _ in instances])
        labels = torch.tensor([label for _, label, _ in instances])
        return match_segments(segments, masks, labels, torch.tensor([c for _, _, c in instances])).tolist()

    assert match(("xx......", 0, False), ("xxx.....", 0, False)) == [-1, 0]  # IoU 1 before IoU 2/3
    assert match(("xxxxx...", 0, False), ("...xx...", 0, True)) == [0, 1]  # IoU 3/5; crowd matches crowd
    assert match(("...xx...", 0, False)) == [-1]  # not a crowd
    assert match((".....xx.", 0, False)) == [-1]  # another class
    assert match((".......x", 1, False)) == [-1]  # void
    empty = torch.zeros(0, 1, 8, dtype=torch.bool)
    none = torch.zeros(0, dtype=torch.int64)
    assert match_segments(segments, empty, none, none.bool()).shape == (0,)


@pytest.mark.parametrize("changed", [{"size": [10**400, 6]}, {"size": "9" * 400}, {"counts": [10**400]}])
def test_large_numbers_are_shortened_in_messages(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected") as error:
        compressed({"size": [4, 6], "counts": [24]} | changed, (4, 6))
    assert len(str(error.value)) < 200
