"""PQ of result files against ground-truth files, without any model."""

from __future__ import annotations

import gc
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refine.errors import RefineError
from refine.evaluation.pq import PanopticQuality
from refine.evaluation.report import PQReport
from refine.files import read_json
from refine.formats.png_runs import read_runs
from refine.structures import Categories

TOGETHER = 16
"""Images that a thread takes at a time."""


def evaluate_files(
    gt_json: str | Path,
    gt_dir: str | Path,
    pred_json: str | Path,
    pred_dir: str | Path,
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PQReport:
    """Stream both sides' PNGs; memory is bounded by `workers`, not by the number of images (but for the JSON).

    Args:
        gt_json, pred_json: COCO panoptic JSON of both sides; categories are the ground truth's.
        gt_dir, pred_dir: folders of their id-PNGs.
        workers: threads; one per core if None.
        progress: called with the images done and their number, from the calling thread.

    Raises:
        RefineError: files that are missing, damaged, or contradict each other; the first one in the
            ground truth's order.
    """
    with _no_collection():
        content, gt = _annotations(gt_json)
        _, pred = _annotations(pred_json)
    categories = Categories.from_json(_mappings(content, "categories", gt_json), str(gt_json))
    missing = [image for image in gt if image not in pred]
    if missing:
        raise RefineError(
            f"{pred_json}: {len(missing)} images have no prediction, first image {missing[0]}; predict every image"
        )
    extra = [image for image in pred if image not in gt]
    if extra:
        raise RefineError(f"{pred_json}: image {extra[0]} is not in {gt_json}; drop it or name the right split")
    names = {str(image.get("id")): image.get("file_name") for image in _mappings(content, "images", gt_json)}
    pairs = [
        _Pair(
            image,
            str(names.get(str(image)) or annotation["file_name"]),
            _Side(gt_json, Path(gt_dir, annotation["file_name"]), annotation["segments_info"]),
            _Side(pred_json, Path(pred_dir, pred[image]["file_name"]), pred[image]["segments_info"]),
        )
        for image, annotation in gt.items()
    ]
    quality = PanopticQuality(categories)
    for part in _in_order(
        [pairs[n : n + TOGETHER] for n in range(0, len(pairs), TOGETHER)],
        lambda some: _evaluate(categories, some),
        workers or _cores(),
    ):
        quality.merge(part)
        if progress is not None:
            progress(len(quality.images), len(pairs))
    return quality.compute()


@dataclass(frozen=True)
class _Side:
    """One image's ground truth or prediction."""

    json: str | Path
    png: Path
    segments: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class _Pair:
    image_id: int | str
    file_name: str
    gt: _Side
    pred: _Side


def _evaluate(categories: Categories, pairs: Sequence[_Pair]) -> PanopticQuality:
    quality = PanopticQuality(categories)
    for pair in pairs:
        quality.update(
            read_runs(pair.gt.png),
            pair.gt.segments,
            read_runs(pair.pred.png),
            pair.pred.segments,
            image_id=pair.image_id,
            file_name=pair.file_name,
            sources=(
                f"{pair.gt.json}: image {pair.image_id} ({pair.gt.png})",
                f"{pair.pred.json}: image {pair.image_id} ({pair.pred.png})",
            ),
        )
    return quality


def _in_order(
    tasks: Sequence[Sequence[_Pair]], work: Callable[[Sequence[_Pair]], PanopticQuality], threads: int
) -> Iterator[PanopticQuality]:
    """Results in the order of the tasks, computed by threads that run at most a few tasks ahead."""
    running: deque[Future[PanopticQuality]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for task in tasks:
            if len(running) == 4 * threads:
                yield running.popleft().result()
            running.append(pool.submit(work, task))
        while running:
            yield running.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Halves the time of reading JSON: its many small objects, none of them garbage, are not searched for it."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _annotations(path: str | Path) -> tuple[Mapping[str, Any], dict[int | str, Mapping[str, Any]]]:
    """The whole content, and annotations by image id, each with its fields."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise RefineError(f"{path}: is a {type(content).__name__}, no object; give a COCO panoptic JSON")
    by_image: dict[int | str, Mapping[str, Any]] = {}
    for n, annotation in enumerate(_mappings(content, "annotations", path)):
        for field, kind in (("image_id", (int, str)), ("file_name", str), ("segments_info", list)):
            if not isinstance(annotation.get(field), kind):
                raise RefineError(f"{path}: annotations[{n}] has no `{field}`; give a COCO panoptic JSON")
        _mappings(annotation, "segments_info", f"{path}: annotations[{n}]")
        if annotation["image_id"] in by_image:
            raise RefineError(f"{path}: image {annotation['image_id']} is annotated twice; keep one")
        by_image[annotation["image_id"]] = annotation
    return content, by_image


def _mappings(content: Mapping[str, Any], field: str, path: str | Path) -> list[Mapping[str, Any]]:
    """A list of objects; may be absent only where it holds nothing but names."""
    entries = content.get(field, [] if field == "images" else None)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise RefineError(f"{path}: has no list of objects `{field}`; give a COCO panoptic JSON")
    return entries
