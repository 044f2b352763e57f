"""Tests of AP against pycocotools."""

import contextlib
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from refine.evaluation.average_precision import COCO_LIMIT, AveragePrecision
from refine.structures import Categories, Category, Instances, Targets
from refine.structures.targets import mask_boxes

CATEGORIES = Categories(
    [Category(3, "cat", True, (0, 0, 0)), Category(7, "dog", True, (0, 0, 0)), Category(9, "sky", False, (0, 0, 0))]
)


def scene(seed):
    """Return ground truth and detections, some of them shifted, spurious or mislabelled."""
    g = np.random.default_rng(seed)
    count, size = int(g.integers(1, 7)), 120
    masks = np.zeros((count, size, size), bool)
    for mask in masks:
        y, x = g.integers(0, 80, 2)
        h, w = g.integers(5, 60, 2)
        mask[y : y + h, x : x + w] = np.tri(h, w, w // 2)[: size - y, : size - x]  # its box is up to twice as large
    shifted = np.concatenate([np.roll(masks, g.integers(-6, 7), axis=1), masks[:1].transpose(0, 2, 1)])
    truth = torch.from_numpy(masks)
    targets = Targets(
        boxes=mask_boxes(truth),
        labels=torch.from_numpy(g.integers(0, 2, count)),
        masks=truth,
        iscrowd=torch.from_numpy(g.random(count) < 0.2),
        sem_seg=torch.zeros(size, size, dtype=torch.int64),
        owner=torch.zeros(size, size, dtype=torch.int64),
    )
    labels = torch.cat([targets.labels, torch.zeros(1, dtype=torch.int64)])
    labels[g.random(count + 1) < 0.1] = 1
    detected = torch.from_numpy(shifted)
    scores = torch.from_numpy(g.random(count + 1)).float()
    return targets, Instances((size, size), mask_boxes(detected), scores, labels, masks=detected)


def by_pycocotools(scenes, kind):
    truth, detections, images = [], [], []
    for n, (targets, instances) in enumerate(scenes, 1):
        images.append({"id": n, "height": 120, "width": 120})
        for m in range(len(targets)):
            rle = coco_mask.encode(np.asfortranarray(targets.masks[m].numpy().astype(np.uint8)))
            x1, y1, x2, y2 = targets.boxes[m].tolist()
            truth.append(
                {
                    "id": len(truth) + 1,
                    "image_id": n,
                    "category_id": CATEGORIES[int(targets.labels[m])].id,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(coco_mask.area(rle)),
                    "segmentation": rle,
                    "iscrowd": int(targets.iscrowd[m]),
                }
            )
        for m in range(len(instances)):
            x1, y1, x2, y2 = instances.boxes[m].tolist()
            mask = coco_mask.encode(np.asfortranarray(instances.masks[m].numpy().astype(np.uint8)))
            # As in detectron2, masks come without boxes, whose areas `loadRes` would take for those of the masks.
            shape = {"bbox": [x1, y1, x2 - x1, y2 - y1]} if kind == "bbox" else {"segmentation": mask}
            label = CATEGORIES[int(instances.labels[m])].id
            detections.append({"image_id": n, "category_id": label, "score": float(instances.scores[m]), **shape})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        categories = [{"id": c.id, "name": c.name} for c in CATEGORIES if c.isthing]
        coco.dataset = {"images": images, "annotations": truth, "categories": categories}
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(detections), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_equals_pycocotools(kind):
    scenes = [scene(n) for n in range(12)]
    ap = AveragePrecision(CATEGORIES)
    for targets, instances in scenes:
        ap.update(targets, instances)
    got = ap.compute()[kind]
    expected = dict(zip(ap.names(), by_pycocotools(scenes, kind), strict=True))
    assert "AR100" in expected
    assert got == pytest.approx(expected, abs=1e-9)
    assert 0.05 < got["AP"] < 0.95  # not trivial


@pytest.mark.parametrize(("limit", "expected"), [(None, 1.0), (COCO_LIMIT, 0.5), (30, 0.15)])
def test_more_detections_than_cocos_limit(limit, expected):
    """Of 200 perfectly detected objects, COCO's AP counts half (precision 1 up to recall 1/2)."""
    masks = torch.zeros(200, 80, 200, dtype=torch.bool)
    for k in range(200):
        y, x = divmod(k, 20)
        masks[k, y * 8 : y * 8 + 6, x * 10 : x * 10 + 8] = True
    boxes, labels, void = mask_boxes(masks), torch.zeros(200, dtype=torch.int64), torch.full((80, 200), -1)
    ap = AveragePrecision(CATEGORIES, limit)
    ap.update(
        Targets(boxes, labels, masks, torch.zeros(200, dtype=torch.bool), void, void),
        Instances((80, 200), boxes, torch.linspace(0.5, 1, 200), labels, masks=masks),
    )
    assert ap.limit == (limit or 200)
    got = ap.compute()["segm"]
    assert got["AP"] == pytest.approx(expected, abs=0.01)
    assert got[f"AR{ap.limit}"] == pytest.approx(ap.limit / 200)


def test_ap_without_detections_is_zero():
    targets, _ = scene(0)
    ap = AveragePrecision(CATEGORIES)
    ap.update(
        targets,
        Instances(
            (120, 120),
            torch.zeros(0, 4),
            torch.zeros(0),
            torch.zeros(0, dtype=torch.int64),
            masks=torch.zeros(0, 120, 120, dtype=torch.bool),
        ),
    )
    got = ap.compute()["segm"]
    assert (got["AP"], got["APs"], got["APl"]) == (0, 0, -1)  # no object is large
    assert AveragePrecision(CATEGORIES).compute()["segm"]["AP"] == -1  # no ground truth either


def test_masks_of_another_size_raise():
    targets, instances = scene(0)
    instances.image_size = (60, 60)
    with pytest.raises(ValueError, match=r"expected masks of size \(120, 120\), got size \(60, 60\)"):
        AveragePrecision(CATEGORIES).update(targets, instances)
    with pytest.raises(ValueError, match="got no masks"):
        AveragePrecision(CATEGORIES).update(targets, replace(scene(0)[1], masks=None))


def test_merged_shards_equal_the_whole():
    scenes = [scene(seed) for seed in range(6)]
    whole, first, second = (AveragePrecision(CATEGORIES) for _ in range(3))
    for n, (targets, instances) in enumerate(scenes):
        for part in (whole, first if n < 2 else second):
            part.update(targets, instances)
    merged = AveragePrecision(CATEGORIES)
    merged.merge(first)
    merged.merge(second)
    assert merged.compute() == whole.compute()
    assert merged.compute() != first.compute()
    with pytest.raises(ValueError, match="detection limits differ"):
        merged.merge(AveragePrecision(CATEGORIES, COCO_LIMIT))
    with pytest.raises(ValueError, match="categories or detection limits"):
        merged.merge(AveragePrecision(Categories([Category(1, "other", True, (0, 0, 0))])))
