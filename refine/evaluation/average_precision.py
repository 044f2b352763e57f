"""COCO box and mask AP, computed by hotcoco."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections import Counter
from typing import Any

import numpy as np
from hotcoco import COCO, COCOeval, mask
from torch import Tensor

from refine.structures import Categories, Instances, Targets

COCO_LIMIT = 100
"""Maximum number of detections per image in COCO's AP."""


class AveragePrecision:
    """Box and mask AP, accumulated image by image as run-length encoded masks.

    Args:
        categories: categories of the data set; AP covers the things.
        max_detections: number of best-scoring detections per image that count; `COCO_LIMIT` gives COCO's own
            AP, None counts all.
    """

    def __init__(self, categories: Categories, max_detections: int | None = None) -> None:
        self.categories, self.max_detections = categories, max_detections
        self._images: list[dict[str, Any]] = []
        self._truth: list[dict[str, Any]] = []
        self._detections: list[dict[str, Any]] = []

    def update(self, targets: Targets, instances: Instances) -> None:
        """Add one image.

        Args:
            targets: ground truth of the image.
            instances: detections with `masks`, at the size of the ground truth.

        Raises:
            ValueError: the detections have no masks, or another size than the ground truth.
        """
        if instances.masks is None or instances.image_size != targets.size:
            got = f"size {instances.image_size}" if instances.masks is not None else "no masks"
            raise ValueError(f"AveragePrecision: expected masks of size {targets.size}, got {got}")
        number = len(self._images) + 1
        height, width = targets.size
        self._images.append({"id": number, "height": height, "width": width})
        crowd = targets.iscrowd.tolist()
        for n, entry in enumerate(self._entries(number, targets.boxes, targets.labels, targets.masks)):
            entry |= {"id": len(self._truth) + 1, "iscrowd": int(crowd[n])}
            entry["area"] = float(mask.area(entry["segmentation"]))
            self._truth.append(entry)
        entries = self._entries(number, instances.boxes, instances.labels, instances.masks)
        for entry, score in zip(entries, instances.scores.tolist(), strict=True):
            self._detections.append(entry | {"score": score})

    def merge(self, other: AveragePrecision) -> None:
        """Add the images of another process or shard.

        Raises:
            ValueError: the categories or detection limits differ.
        """
        if (other.categories, other.max_detections) != (self.categories, self.max_detections):
            raise ValueError("AveragePrecision.merge: the categories or detection limits differ")
        images, truth = len(self._images), len(self._truth)
        self._images += [entry | {"id": entry["id"] + images} for entry in other._images]
        more = [entry | {"image_id": entry["image_id"] + images} for entry in other._truth]
        self._truth += [entry | {"id": entry["id"] + truth} for entry in more]
        self._detections += [entry | {"image_id": entry["image_id"] + images} for entry in other._detections]

    def _entries(self, image: int, boxes: Tensor, labels: Tensor, masks: Tensor) -> list[dict[str, Any]]:
        corners = boxes.double().cpu()
        sides = corners.clone()
        sides[:, 2:] -= corners[:, :2]  # x, y, width, height
        return [
            {"image_id": image, "category_id": self.categories[label].id, "bbox": box, "segmentation": encode(m)}
            for box, label, m in zip(sides.tolist(), labels.tolist(), masks.cpu().numpy(), strict=True)
        ]

    @property
    def limit(self) -> int:
        """Return `max_detections`, or if None the largest number in any image, but at least `COCO_LIMIT`."""
        if self.max_detections is not None:
            return self.max_detections
        return max(COCO_LIMIT, *Counter(entry["image_id"] for entry in self._detections).values(), 0)

    def names(self) -> list[str]:
        """Return the names of COCO's twelve metrics in COCO's order; the ninth is AR at `limit` detections."""
        largest = f"AR{self.limit}"
        return ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", largest, "ARs", "ARm", "ARl"]

    def compute(self) -> dict[str, dict[str, float]]:
        """Return the metrics of `names`, 0-1, for `bbox` and `segm`; -1 where a metric is undefined."""
        categories = [{"id": c.id, "name": c.name} for c in self.categories if c.isthing]
        truth = COCO({"images": self._images, "annotations": self._truth, "categories": categories})
        # A box would give its area to the mask, and so decide whether it is small, medium or large.
        masks = [{key: entry[key] for key in entry if key != "bbox"} for entry in self._detections]
        detections = {"bbox": self._detections, "segm": masks}
        return {kind: self._evaluate(truth, truth.load_res(found), kind) for kind, found in detections.items()}

    def _evaluate(self, truth: COCO, results: COCO, kind: str) -> dict[str, float]:
        evaluation = COCOeval(truth, results, kind)
        evaluation.params.max_dets = [1, 10, self.limit]
        evaluation.evaluate()
        evaluation.accumulate()
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # hotcoco warns if the limit is not COCO's
            evaluation.summarize()  # prints a table
        return dict(zip(self.names(), map(float, evaluation.stats), strict=True))


def encode(binary: np.ndarray) -> dict[str, Any]:
    """Return the COCO run-length encoding of a mask, [H, W] bool."""
    return mask.encode(np.asfortranarray(binary.astype(np.uint8)))
