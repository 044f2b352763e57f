"""Conversion of other libraries' predictions to `Instances`, without importing those libraries.

    instances = from_torchvision(maskrcnn([image])[0], categories)
    result = refine.fuse(instances, sem_seg, categories=categories)

Labels are mapped to contiguous indices through category ids of the data set; see `category_ids` of each function.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from hotcoco import mask as rle
from torch import Tensor

from refine.errors import RefineError, shown
from refine.formats.rle import compressed
from refine.ops.masks import MaskRuns
from refine.ops.roi import Sampling, align
from refine.structures import Categories, Instances
from refine.structures.arrays import ArrayLike, as_masks, as_tensor
from refine.structures.targets import mask_boxes


def from_torchvision(
    output: Mapping[str, Tensor], categories: Categories, category_ids: Sequence[int] | None = None
) -> Instances:
    """Convert the output of torchvision's Mask R-CNN for one image.

    Args:
        output: `boxes` Tensor[N, 4], `labels` Tensor[N], `scores` Tensor[N], `masks` Tensor[N, 1, H, W], 0-1.
        categories: categories of the data set.
        category_ids: category id of each label; None means that labels are ids, as in the published COCO
            weights (0 is background).

    Raises:
        RefineError: an entry is missing, or a label is not a thing of `categories`.
    """
    missing = [name for name in ("boxes", "labels", "scores", "masks") if name not in output]
    if missing:
        raise RefineError(
            f"output: has no {missing[0]!r}; give the output of torchvision's Mask R-CNN for one image"
        )
    masks = as_tensor("output['masks']", output["masks"])
    if masks.ndim != 4 or masks.shape[1] != 1:
        raise RefineError(f"output['masks']: expected shape (N, 1, H, W), got {tuple(masks.shape)}")
    masks = masks[:, 0] >= 0.5
    labels = _labels(output["labels"], category_ids, categories)
    return Instances(_size(masks), output["boxes"], output["scores"], labels, masks=masks)


def from_detectron2(instances: Any, categories: Categories, category_ids: Sequence[int] | None = None) -> Instances:
    """Convert detectron2's `Instances` of one image after postprocessing.

    Args:
        instances: object with `image_size`, `pred_boxes.tensor`, `scores`, `pred_classes` and full-image
            `pred_masks`, Tensor[N, H, W] bool.
        categories: categories of the data set.
        category_ids: category id of each class index; None means the things of `categories` sorted by id, as in
            detectron2's metadata of COCO and Cityscapes.

    Raises:
        RefineError: a field is missing, or a class is not a thing of `categories`.
    """
    for name in ("image_size", "pred_boxes", "scores", "pred_classes", "pred_masks"):
        if not hasattr(instances, name):
            raise RefineError(f"instances: has no {name!r}; give detectron2's instances after postprocessing")
    if category_ids is None:
        category_ids = [category.id for category in categories if category.isthing]
    return Instances(
        (int(instances.image_size[0]), int(instances.image_size[1])),
        instances.pred_boxes.tensor,
        instances.scores,
        _labels(instances.pred_classes, category_ids, categories),
        masks=instances.pred_masks,
    )


def from_huggingface(
    result: Mapping[str, Any], categories: Categories, category_ids: Sequence[int] | None = None
) -> Instances:
    """Convert a result of transformers' `post_process_{instance,panoptic}_segmentation`.

    Args:
        result: result for one image: `segments_info` (each with `id`, `label_id`, `score`), and `segmentation`:
            Tensor[H, W] of segment ids, or Tensor[N, H, W] of binary maps in the order of `segments_info`.
        categories: categories of the data set; segments of stuff classes are skipped.
        category_ids: category id of each label; None means that labels are ids.

    Raises:
        RefineError: an entry is missing, or a label is not in `categories`.
    """
    segmentation, infos = result.get("segmentation"), result.get("segments_info")
    if segmentation is None or infos is None:
        raise RefineError("result: expected `segmentation` and `segments_info`; give the result of one image")
    segmentation = as_tensor("segmentation", segmentation)
    masks: list[Tensor] = []
    labels: list[int] = []
    scores: list[float] = []
    for n, info in enumerate(infos):
        missing = [name for name in ("id", "label_id", "score") if name not in info]
        if missing:
            raise RefineError(f"segments_info[{n}]: has no {missing[0]!r}; give the unchanged result of one image")
        category_id = _category_id(info["label_id"], category_ids, f"segments_info[{n}].label_id")
        if category_id not in categories:
            raise RefineError(
                f"segments_info[{n}].label_id: category {category_id} is not in categories; give category_ids"
            )
        if categories[categories.index(category_id)].isthing:
            masks.append(segmentation[n].bool() if segmentation.ndim == 3 else segmentation == info["id"])
            labels.append(categories.index(category_id))
            scores.append(float(info["score"]))
    size, device = (int(segmentation.shape[-2]), int(segmentation.shape[-1])), segmentation.device
    stacked = torch.stack(masks) if masks else torch.zeros(0, *size, dtype=torch.bool, device=device)
    return from_masks(
        stacked, torch.tensor(labels, dtype=torch.int64, device=device), torch.tensor(scores, device=device)
    )


def from_coco(
    entries: Sequence[Mapping[str, Any]],
    size: tuple[int, int],
    categories: Categories,
    source: str = "results",
    min_score: float = 0.0,
) -> Instances:
    """Convert the entries of one image in COCO's results format to instances with `runs`; drop empty masks.

    Memory is proportional to the outlines of the masks, not to their number times the image size.

    Args:
        entries: detections with `category_id`, `score` and `segmentation` (run lengths of any kind, or polygons).
        size: (height, width) of the image in pixels.
        categories: categories of the data set.
        source: prefix of error messages, such as the file name.
        min_score: entries with a lower score are validated and dropped.

    Raises:
        RefineError: a field is missing or invalid, a category is not a thing, or a mask has another size.
    """
    edges: list[Tensor] = []
    boxes: list[tuple[int, int, int, int]] = []
    labels, scores = [], []
    for n, entry in enumerate(entries):
        where = f"{source}: entry {n}"
        for field, kind in (("category_id", int), ("score", (int, float)), ("segmentation", (dict, list))):
            if not isinstance(entry.get(field), kind) or isinstance(entry[field], bool):
                raise RefineError(
                    f"{where}: {field} is {shown(entry.get(field))}; give it as in COCO's results format"
                )
        category_id, score = entry["category_id"], entry["score"]
        if category_id not in categories or not categories[categories.index(category_id)].isthing:
            raise RefineError(
                f"{where}: category_id {shown(category_id)} is not a thing of the categories; correct it"
            )
        if not 0 <= score <= 1:
            raise RefineError(f"{where}: score is {shown(score)}; give a confidence from 0 to 1")
        code = _encode(entry["segmentation"], size, where)
        if score < min_score or not rle.area(code):
            continue
        box, edge = _runs(code)
        boxes.append(box)
        edges.append(edge)
        labels.append(categories.index(category_id))
        scores.append(float(score))
    count = len(edges)
    mask = torch.arange(count).repeat_interleave(torch.tensor([len(edge) for edge in edges], dtype=torch.int64))
    start, end = torch.cat([torch.zeros(0, 2, dtype=torch.int64), *edges]).unbind(1)
    return Instances(
        size,
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(scores),
        torch.tensor(labels, dtype=torch.int64),
        runs=MaskRuns(size, count, mask, start, end),
    )


def from_masks(masks: ArrayLike, labels: ArrayLike, scores: ArrayLike) -> Instances:
    """Create instances from full-image masks, with tight boxes; drop empty masks.

    Args:
        masks: Tensor or array [N, H, W] of 0 and 1, of any dtype.
        labels: Tensor or array [N] of integers, contiguous thing class.
        scores: Tensor or array [N] of floats, 0-1.

    Raises:
        ValueError: shapes do not agree.
        RefineError: masks contain values other than 0 and 1.
    """
    full = as_masks("masks", masks)
    if full.ndim != 3:
        raise ValueError(f"masks: expected shape (N, H, W), got {tuple(full.shape)}")
    boxes = torch.zeros(len(full), 4, device=full.device)
    instances = Instances(_size(full), boxes, as_tensor("scores", scores), as_tensor("labels", labels), masks=full)
    visible = full.flatten(1).any(1)
    return replace(instances[visible], boxes=mask_boxes(full[visible]))


def add_roi_masks(instances: Instances, bins: int = 28) -> Instances:
    """Add the `roi_masks` that an occlusion head needs to instances with full-image masks.

    Args:
        instances: N instances with `masks` or `runs`.
        bins: number of bins M per side of a box.

    Returns:
        Instances with `roi_masks`, Tensor[N, M, M] float, the covered fraction of each bin.
    """
    height, width = instances.image_size
    at_once = max(1, 2**26 // (height * width))
    parts = [instances.boxes.new_zeros(0, bins, bins)]
    for first in range(0, len(instances), at_once):
        part = instances[first : first + at_once]
        masks = part.masks if part.runs is None else part.runs.dense()
        assert masks is not None
        index = torch.arange(len(part), device=part.boxes.device, dtype=part.boxes.dtype)
        rois = torch.cat([index[:, None], part.boxes], 1)
        parts.append(align(masks[:, None].float(), rois, bins, Sampling(0), 1)[:, 0])
    return replace(instances, roi_masks=torch.cat(parts))


def _size(masks: Tensor) -> tuple[int, int]:
    return int(masks.shape[-2]), int(masks.shape[-1])


def _labels(labels: ArrayLike, category_ids: Sequence[int] | None, categories: Categories) -> Tensor:
    """Convert labels of another library to contiguous thing classes, Tensor[N] int64."""
    found, labels = [], as_tensor("labels", labels)
    for label in labels.tolist():
        category_id = _category_id(label, category_ids, "labels")
        if category_id not in categories or not categories[categories.index(category_id)].isthing:
            raise RefineError(f"labels: category {category_id} is not a thing of categories; give category_ids")
        found.append(categories.index(category_id))
    return torch.tensor(found, dtype=torch.int64, device=labels.device)


def _category_id(label: int, category_ids: Sequence[int] | None, where: str) -> int:
    """Return the category id of a label; the label itself if `category_ids` is None."""
    if category_ids is None:
        return label
    if not 0 <= label < len(category_ids):
        raise RefineError(f"{where}: {label} has no entry in category_ids, which has {len(category_ids)}; add it")
    return category_ids[label]


def _encode(segmentation: Any, size: tuple[int, int], where: str) -> dict[str, Any]:
    """Convert run lengths or polygons to compressed run lengths."""
    try:
        return compressed(segmentation, size)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise RefineError(f"{where}: segmentation is invalid ({error}); correct it") from error


def _runs(code: dict[str, Any]) -> tuple[tuple[int, int, int, int], Tensor]:
    """Return the box (x1, y1, x2, y2) of a non-empty mask and its runs along rows, Tensor[R, 2] int64."""
    x, y, box_width, box_height = (int(v) for v in rle.to_bbox(code))
    width = code["size"][1]
    inside = rle.decode(code)[y : y + box_height, x : x + box_width]
    step = np.diff(np.pad(inside, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    edges = []
    for change in (1, -1):  # starts and ends alternate along each row, so the n-th of both form a run
        row, column = np.nonzero(step == change)
        edges.append(torch.from_numpy((row + y) * width + x + column))
    return (x, y, x + box_width, y + box_height), torch.stack(edges, 1)
