"""PQ of result files against ground-truth files, without any model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from os import cpu_count
from pathlib import Path
from typing import Any

from refine.errors import RefineError
from refine.evaluation.coco_format import read_png
from refine.evaluation.pq import PanopticQuality
from refine.evaluation.report import PQReport
from refine.files import read_json
from refine.structures import Categories


@dataclass(frozen=True)
class _Pair:
    """One image: its annotations and PNGs on both sides."""

    image_id: int | str
    file_name: str
    gt: Mapping[str, Any]
    gt_png: Path
    pred: Mapping[str, Any]
    pred_png: Path


def evaluate_files(
    gt_json: str | Path,
    gt_dir: str | Path,
    pred_json: str | Path,
    pred_dir: str | Path,
    workers: int | None = None,
) -> PQReport:
    """Stream both sides' PNGs; memory is bounded by `workers`, not by the number of images.

    Args:
        gt_json, pred_json: COCO panoptic JSON of both sides; categories are the ground truth's.
        gt_dir, pred_dir: folders of their id-PNGs.
        workers: threads; one per core if None.

    Raises:
        RefineError: files that are missing, damaged, or contradict each other.
    """
    gt, pred = _annotations(gt_json), _annotations(pred_json)
    content = gt.content
    categories = Categories.from_json(content.get("categories", []), str(gt_json))
    missing = [image for image in gt.by_image if image not in pred.by_image]
    if missing:
        raise RefineError(
            f"{pred_json}: {len(missing)} images have no prediction, first image {missing[0]}; predict every image"
        )
    extra = [image for image in pred.by_image if image not in gt.by_image]
    if extra:
        raise RefineError(
            f"{pred_json}: image {extra[0]} is not in {gt_json}; drop it or name the right split"
        )
    names = {image["id"]: image.get("file_name", "") for image in content.get("images", [])}
    pairs = [
        _Pair(
            image,
            names.get(image, annotation["file_name"]),
            annotation,
            Path(gt_dir) / annotation["file_name"],
            pred.by_image[image],
            Path(pred_dir) / pred.by_image[image]["file_name"],
        )
        for image, annotation in gt.by_image.items()
    ]
    count = workers or cpu_count() or 1
    quality = PanopticQuality(categories)
    with ThreadPoolExecutor(count) as pool:
        for part in pool.map(lambda n: _evaluate(categories, islice(pairs, n, None, count)), range(count)):
            quality.merge(part)
    quality.images.sort(key=lambda image: str(image.image_id))
    return quality.compute()


def _evaluate(categories: Categories, pairs: Iterator[_Pair]) -> PanopticQuality:
    quality = PanopticQuality(categories)
    for pair in pairs:
        quality.update(
            read_png(pair.gt_png),
            pair.gt["segments_info"],
            read_png(pair.pred_png),
            pair.pred["segments_info"],
            image_id=pair.image_id,
            file_name=pair.file_name,
        )
    return quality


@dataclass(frozen=True)
class _Annotations:
    content: Mapping[str, Any]
    by_image: dict[int | str, Mapping[str, Any]]


def _annotations(path: str | Path) -> _Annotations:
    """Annotations by image id, each with its fields."""
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        raise RefineError(f"{path}: has no list `annotations`; give a COCO panoptic JSON")
    by_image: dict[int | str, Mapping[str, Any]] = {}
    for n, annotation in enumerate(content["annotations"]):
        for field in ("image_id", "file_name", "segments_info"):
            if field not in annotation:
                raise RefineError(f"{path}: annotations[{n}] has no `{field}`; give a COCO panoptic JSON")
        for m, segment in enumerate(annotation["segments_info"]):
            for field in ("id", "category_id"):
                if not isinstance(segment.get(field), int):
                    raise RefineError(
                        f"{path}: annotations[{n}].segments_info[{m}].{field} is no integer; give it"
                    )
        if annotation["image_id"] in by_image:
            raise RefineError(f"{path}: image {annotation['image_id']} is annotated twice; keep one")
        by_image[annotation["image_id"]] = annotation
    return _Annotations(content, by_image)
