"""Tests of reading Cityscapes: eight real frames, and hand-drawn frames."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers.drawn_data import write_cityscapes

from refine.data.build import build_dataset
from refine.data.cityscapes import CATEGORIES, Cityscapes
from refine.data.config import DatasetConfig
from refine.data.loader import PanopticDataset, training_batches
from refine.errors import RefineError
from refine.structures import VOID

# road 7, parking 9 (ignored), a crowd of persons 24, two cars, a caravan (ignored), ego vehicle 1
VALUES = np.array(
    [
        [7, 7, 9, 24, 24],
        [7, 26000, 26000, 26001, 1],
        [7, 26000, 29000, 26001, 0],
    ]
)
INDEX = {c.name: n for n, c in enumerate(CATEGORIES)}


def test_classes_are_those_of_the_benchmark() -> None:
    names = [c.name for c in CATEGORIES]
    assert names[:8] == ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]
    assert names[8:11] == ["road", "sidewalk", "building"]
    assert names[-2:] == ["terrain", "sky"]
    assert (CATEGORIES.num_things, CATEGORIES.num_stuff) == (8, 11)


def test_groups_are_crowds_and_ignored_labels_are_void(tmp_path: Path) -> None:
    write_cityscapes(tmp_path, VALUES)
    dataset: PanopticDataset = Cityscapes(tmp_path, "val")
    assert len(dataset) == 1
    assert list(dataset.sizes) == [(3, 5)]
    assert dataset.name(0) == ("ulm_000000_000001", "ulm_000000_000001_leftImg8bit.png")
    image, segments = dataset[0]
    assert image.dtype == torch.uint8
    assert image[:, 0, 0].tolist() == [1, 2, 3]
    road, person, car = INDEX["road"], INDEX["person"], INDEX["car"]
    classes = torch.cat([segments.labels, torch.tensor([VOID])])[segments.index.long()]
    expected = [
        [road, road, VOID, person, person],
        [road, car, car, car, VOID],
        [road, car, VOID, car, VOID],
    ]
    assert classes.tolist() == expected
    targets = segments.targets(8, "a", "b")
    assert list(zip(targets.labels.tolist(), targets.iscrowd.tolist(), strict=True)) == [
        (person, True),
        (car, False),
        (car, False),
    ]
    assert targets.boxes.tolist() == [[3, 0, 5, 1], [1, 1, 3, 3], [3, 1, 4, 3]]


def test_a_frame_without_classes_is_void(tmp_path: Path) -> None:
    write_cityscapes(tmp_path, np.zeros((4, 4), int))
    _, segments = Cityscapes(tmp_path, "val")[0]
    assert (segments.index == -1).all()
    assert len(segments.targets(8, 0, "").boxes) == 0


def test_frames_are_sorted_by_city_and_name(tmp_path: Path) -> None:
    for name in ("ulm_000001_000019", "bonn_000003_000019", "ulm_000000_000019"):
        write_cityscapes(tmp_path, VALUES, name)
    write_cityscapes(tmp_path, VALUES, "jena_000000_000019", split="train")
    dataset = Cityscapes(tmp_path, "val")
    names = [dataset.name(n)[0] for n in range(len(dataset))]
    assert names == ["bonn_000003_000019", "ulm_000000_000019", "ulm_000001_000019"]


def test_invalid_files_raise(tmp_path: Path) -> None:
    with pytest.raises(RefineError, match=r"gtFine/val: contains no CITY/\*_gtFine_instanceIds.png"):
        Cityscapes(tmp_path, "val")
    ids = write_cityscapes(tmp_path, VALUES)
    for value in (34, 999, 7000, 23001, 34000):
        cv2.imwrite(str(ids), np.where(VALUES == 9, value, VALUES).astype(np.uint16))
        with pytest.raises(RefineError, match=f"{ids.name}: value {value} is not a Cityscapes label"):
            Cityscapes(tmp_path, "val")[0]
    cv2.imwrite(str(ids), VALUES[:2].astype(np.uint16))
    with pytest.raises(RefineError, match=r"expected 5 × 2 pixels as in .*, got 5 × 3"):
        Cityscapes(tmp_path, "val")[0]
    cv2.imwrite(str(ids), np.zeros((3, 5, 3), np.uint8))
    with pytest.raises(RefineError, match="expected a grey PNG of 8 or 16 bits, got 8-bit RGB"):
        Cityscapes(tmp_path, "val")[0]
    ids.write_bytes(b"")
    with pytest.raises(RefineError, match="is not a PNG, or truncated"):
        Cityscapes(tmp_path, "val")


def test_config_and_loader_accept_cityscapes(tmp_path: Path) -> None:
    from refine.data.config import AugmentConfig

    write_cityscapes(tmp_path, VALUES)
    dataset = build_dataset(DatasetConfig(kind="cityscapes", root=str(tmp_path), split="val"))
    images, targets = next(iter(training_batches(dataset, AugmentConfig(short=[6]), 1)))
    assert images[0].shape == (3, 6, 10)
    assert targets[0].file_name == "ulm_000000_000001_leftImg8bit.png"


@pytest.mark.parametrize(("split", "count"), [("train", 6), ("val", 2)])
def test_real_frames_agree_with_their_label_maps(shared_dir: Path, split: str, count: int) -> None:
    """labelIds.png, which the reader does not use, must give the same classes."""
    root = shared_dir / "data" / "cityscapes_sample"
    if not root.is_dir():
        pytest.skip(f"no Cityscapes frames at {root}")
    dataset = Cityscapes(root, split)
    assert len(dataset) == count
    for n in range(0, count, 3):
        image, segments = dataset[n]
        assert image.shape == (3, 1024, 2048)
        assert dataset.sizes[n] == tuple(segments.index.shape)
        path = root / "gtFine" / split / "aachen" / f"{dataset.name(n)[0]}_gtFine_labelIds.png"
        labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        ids = np.array([c.id for c in CATEGORIES] + [255])
        classes = torch.cat([segments.labels, torch.tensor([VOID])])[segments.index.long()].numpy()
        kept = np.isin(labels, ids)
        np.testing.assert_array_equal(np.where(kept, labels, 255), ids[classes])
        instances = cv2.imread(str(path).replace("labelIds", "instanceIds"), cv2.IMREAD_UNCHANGED)
        things = ~segments.iscrowd & (segments.labels < 8)
        numbered = np.unique(instances[instances >= 1000])
        assert int(things.sum()) == len(numbered[~np.isin(numbered // 1000, (29, 30))])
