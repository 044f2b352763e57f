"""Tests of converting predictions of other libraries, with their own code where it is installed."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torchvision.models.detection import maskrcnn_resnet50_fpn

from refine import fuse
from refine.errors import RefineError
from refine.formats.adapters import (
    add_roi_masks,
    from_coco,
    from_detectron2,
    from_huggingface,
    from_masks,
    from_torchvision,
)
from refine.structures import Categories

CATEGORIES = Categories.from_json(
    [
        {"id": 1, "name": "person", "isthing": 1},
        {"id": 18, "name": "dog", "isthing": 1},
        {"id": 130, "name": "sky", "isthing": 0},
    ]
)
MASKS = torch.zeros(2, 20, 30, dtype=torch.bool)
MASKS[0, 2:10, 3:12] = True
MASKS[1, 8:19, 10:29] = True
BOXES = torch.tensor([[3.0, 2, 12, 10], [10, 8, 29, 19]])


def test_torchvision_output():
    torch.manual_seed(0)
    model = maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=2, min_size=64, max_size=96, box_score_thresh=0.0,
        box_detections_per_img=5,
    ).eval()  # fmt: skip
    with torch.no_grad():
        output = model([torch.rand(3, 64, 96)])[0]
    instances = from_torchvision(output, CATEGORIES)
    assert len(instances) == len(output["scores"]) > 0
    assert instances.labels.tolist() == [0] * len(instances)
    assert instances.masks.equal(output["masks"][:, 0] >= 0.5)
    result = fuse(instances, torch.full((64, 96), 2), categories=CATEGORIES)
    assert result.segment_ids.shape == (64, 96)


def test_detectron2_attributes():
    predicted = SimpleNamespace(
        image_size=(20, 30),
        pred_boxes=SimpleNamespace(tensor=BOXES),
        scores=torch.tensor([0.9, 0.8]),
        pred_classes=torch.tensor([1, 0]),
        pred_masks=MASKS,
    )
    instances = from_detectron2(predicted, CATEGORIES)
    assert instances.labels.tolist() == [1, 0]  # contiguous classes, sorted by id
    assert from_detectron2(predicted, CATEGORIES, [18, 1]).labels.tolist() == [0, 1]
    assert instances.boxes.equal(BOXES)
    del predicted.pred_masks
    with pytest.raises(RefineError, match="has no 'pred_masks'"):
        from_detectron2(predicted, CATEGORIES)


@pytest.mark.parametrize("stacked", [False, True])
def test_huggingface_results(stacked):
    infos = [
        {"id": 1, "label_id": 18, "score": 0.9},
        {"id": 2, "label_id": 130, "score": 0.7},  # stuff
        {"id": 3, "label_id": 1, "score": 0.8},
    ]
    if stacked:
        segmentation = torch.stack([MASKS[0], MASKS[0], MASKS[1]]).float()
    else:
        segmentation = torch.full((20, 30), 2)
        segmentation[MASKS[1]] = 3
        segmentation[MASKS[0]] = 1
    instances = from_huggingface({"segmentation": segmentation, "segments_info": infos}, CATEGORIES)
    assert instances.labels.tolist() == [1, 0]
    torch.testing.assert_close(instances.scores, torch.tensor([0.9, 0.8]))
    assert instances.masks[0].equal(MASKS[0])
    assert instances.boxes[0].tolist() == BOXES[0].tolist()
    empty = from_huggingface({"segmentation": torch.full((20, 30), -1), "segments_info": []}, CATEGORIES)
    assert len(empty) == 0


@pytest.mark.parametrize(
    ("info", "words"),
    [
        ({"label_id": 1, "score": 0.5}, "has no 'id'"),
        ({"id": 1, "score": 0.5}, "has no 'label_id'"),
        ({"id": 1, "label_id": 1}, "has no 'score'"),
        ({"id": 1, "label_id": 2, "score": 0.5}, "2 has no entry in category_ids"),
        ({"id": 1, "label_id": 0, "score": 0.5}, "category 99 is not in categories"),
    ],
)
def test_invalid_huggingface_results_raise(info, words):
    with pytest.raises(RefineError, match=r"segments_info\[0\].*" + words):
        from_huggingface({"segmentation": torch.ones(4, 6), "segments_info": [info]}, CATEGORIES, [99, 1])


@pytest.mark.parametrize("form", ["compressed", "text", "counts", "polygon"])
def test_coco_results(form):
    entries = []
    for mask, (x1, y1, x2, y2), category_id in zip(MASKS, BOXES.tolist(), (18, 1), strict=True):
        code = coco_mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
        if form == "text":
            code["counts"] = code["counts"].decode()
        elif form == "counts":
            flat = mask.numpy().T.ravel()
            edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [2]])))
            code = {"size": [20, 30], "counts": np.diff(np.concatenate([[0], edges])).tolist()}
        elif form == "polygon":
            code = [[x1, y1, x2, y1, x2, y2, x1, y2]]
        entries.append({"category_id": category_id, "score": 0.5, "segmentation": code})
    instances = from_coco(entries, (20, 30), CATEGORIES)
    assert instances.masks is None
    assert instances.runs.dense().equal(MASKS)
    assert instances.boxes.equal(BOXES)
    assert instances.labels.tolist() == [1, 0]


def test_coco_results_as_runs_equal_dense_masks():
    rng = np.random.default_rng(0)
    masks = rng.random((8, 20, 30)) < rng.random((8, 1, 1)) ** 2
    masks[0], masks[1], masks[2, :, 25:] = True, False, True
    entries = [
        {"category_id": 1, "score": n / 10, "segmentation": coco_mask.encode(np.asfortranarray(mask, np.uint8))}
        for n, mask in enumerate(masks)
    ]
    kept = [n for n in range(8) if n != 1]
    instances = from_coco(entries, (20, 30), CATEGORIES)
    dense = from_masks(torch.from_numpy(masks[kept]), torch.zeros(7, dtype=torch.int64), instances.scores)
    assert instances.runs.dense().equal(dense.masks)
    assert instances.boxes.equal(dense.boxes)
    assert add_roi_masks(instances).roi_masks.equal(add_roi_masks(dense).roi_masks)
    assert instances[torch.tensor([2, 0])].runs.dense().equal(dense.masks[[2, 0]])
    assert instances[instances.scores > 0.25].runs.dense().equal(dense.masks[dense.scores > 0.25])
    assert instances[1:3].to("cpu").runs.dense().equal(dense.masks[1:3])
    assert len(from_coco(entries, (20, 30), CATEGORIES, min_score=0.3)) == 5
    assert len(from_coco([], (20, 30), CATEGORIES)) == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"category_id": 130}, "category_id 130 is not a thing"),
        ({"category_id": 99}, "category_id 99 is not a thing"),
        ({"score": 1.5}, "score is 1.5"),
        ({"score": None}, "score is None"),
        ({"segmentation": {"size": [5, 5], "counts": [25]}}, r"expected size \[20, 30\], got \[5, 5\]"),
        ({"segmentation": {"size": [20, 30]}}, "segmentation is invalid"),
        ({"segmentation": {"size": [20, 30], "counts": [5, 5]}}, "expected counts of 600 pixels, got 10"),
        ({"segmentation": {"size": [20, 30], "counts": [True] * 600}}, "expected integer counts"),
        ({"segmentation": []}, "it is empty"),
        ({"segmentation": [[1, 2, 9, 2, 9]]}, "a polygon needs three corners"),
        ({"segmentation": [[1, 2, 9, 2]]}, "a polygon needs three corners"),
        ({"segmentation": [[1, 2, 9, 2, 9, True]]}, "a polygon needs three corners"),
        ({"segmentation": [[1, 1, 5, float("nan"), 5, 5]]}, "a corner is not finite"),
        ({"segmentation": "mask"}, "segmentation is 'mask'"),
    ],
)
def test_invalid_coco_results_raise(changes, words):
    entry = {"category_id": 1, "score": 0.5, "segmentation": [[1, 1, 5, 1, 5, 5]]} | changes
    with pytest.raises(RefineError, match=words) as error:
        from_coco([entry], (20, 30), CATEGORIES, "file.json: image 3")
    assert str(error.value).startswith("file.json: image 3: entry 0")


def test_unknown_labels_raise():
    output = {
        "boxes": BOXES, "labels": torch.tensor([1, 2]), "scores": torch.ones(2), "masks": MASKS[:, None].float()
    }  # fmt: skip
    with pytest.raises(RefineError, match="category 2 is not a thing"):
        from_torchvision(output, CATEGORIES)
    assert from_torchvision(output, CATEGORIES, [0, 1, 18]).labels.tolist() == [0, 1]
    with pytest.raises(RefineError, match="2 has no entry in category_ids"):
        from_torchvision(output, CATEGORIES, [0, 1])
    with pytest.raises(RefineError, match="has no 'masks'"):
        from_torchvision({k: v for k, v in output.items() if k != "masks"}, CATEGORIES)


def test_empty_masks_are_dropped_and_roi_masks_cover_their_boxes():
    masks = torch.cat([MASKS, torch.zeros(1, 20, 30, dtype=torch.bool)])
    instances = from_masks(masks, torch.tensor([0, 1, 0]), torch.tensor([0.9, 0.8, 0.7]))
    assert len(instances) == 2
    with_roi = add_roi_masks(instances, 4)
    # Samples near the edge reach beyond it.
    torch.testing.assert_close(with_roi.roi_masks, torch.ones(2, 4, 4), atol=0.1, rtol=0)
    half = MASKS[:1].clone()
    half[0, 2:6, 3:12] = False
    half[0, 2, 3] = True  # keeps the box
    lower = add_roi_masks(from_masks(half, torch.tensor([0]), torch.tensor([0.9])), 4).roi_masks[0]
    assert (lower[2:] > 0.9).all()
    assert (lower[:2, 1:] < 0.2).all()


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float32])
def test_arrays_and_tensors_are_equivalent(dtype):
    expected = from_masks(MASKS, torch.tensor([1, 0]), torch.tensor([0.9, 0.8]))
    arrays = from_masks(MASKS.numpy().astype(dtype), np.array([1, 0]), np.array([0.9, 0.8], np.float32))
    for field in ("boxes", "scores", "labels", "masks"):
        assert torch.equal(getattr(arrays, field), getattr(expected, field))
    output = {"boxes": BOXES.numpy(), "labels": np.array([1, 18]), "scores": np.array([0.9, 0.8], np.float32)}
    found = from_torchvision(output | {"masks": MASKS[:, None].numpy().astype(np.float32)}, CATEGORIES)
    assert torch.equal(found.masks, MASKS)
    assert torch.equal(found.boxes, BOXES)
    ids = np.where(MASKS[0], 1, np.where(MASKS[1], 2, 0))
    infos = [{"id": 1, "label_id": 1, "score": 0.9}, {"id": 2, "label_id": 18, "score": 0.8}]
    found = from_huggingface({"segmentation": ids, "segments_info": infos}, CATEGORIES)
    assert found.labels.tolist() == [0, 1]
    assert torch.equal(found.masks[0], MASKS[0])


@pytest.mark.parametrize(
    ("masks", "error", "words"),
    [
        (MASKS[0], ValueError, r"masks: expected shape \(N, H, W\), got \(20, 30\)"),
        (MASKS * 0.3, RefineError, "masks: expected 0 and 1, got torch.float32"),
        (MASKS[:1], ValueError, "Instances.scores: expected 1 entries"),
        (None, TypeError, "masks: expected an array or a tensor, got NoneType"),
    ],
)
def test_invalid_masks_raise(masks, error, words):
    with pytest.raises(error, match=words):
        from_masks(masks, torch.tensor([0, 1]), torch.tensor([0.9, 0.8]))
