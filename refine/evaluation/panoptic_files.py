"""PQ of result files against ground-truth files, without any model."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np

from refine.cores import available_cores
from refine.errors import RefineError, shown
from refine.evaluation.matching import Side
from refine.evaluation.pq import PanopticQuality
from refine.evaluation.report import PQReport
from refine.formats.id_png import read_runs
from refine.formats.panoptic_json import Annotation, ImageEntry, PanopticJson, same_image
from refine.formats.segments_info import CLASS, ID
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
        gt_json, pred_json: COCO panoptic JSON of both sides. The categories are the ground truth's; where the
            predictions state `images` or `categories` with other ids, names decide, and the report notes it.
        gt_dir, pred_dir: folders of their id-PNGs.
        workers: threads; one per core if None.
        progress: called with the images done and their number, from the calling thread.

    Raises:
        RefineError: files that are missing, damaged, or contradict each other; the first one in the
            ground truth's order.
    """
    gt = PanopticJson(gt_json, needs=("annotations", "categories"))
    pred = PanopticJson(pred_json, needs=("annotations",), categories=gt.categories)
    quality = PanopticQuality(gt.categories)
    classes, remapped = _pred_classes(gt, pred)
    pairs, joined = _pairs(gt, pred, Path(gt_dir), Path(pred_dir), classes)
    for part in _in_order(
        [pairs[n : n + TOGETHER] for n in range(0, len(pairs), TOGETHER)],
        lambda some: _evaluate(gt.categories, some),
        workers or available_cores(),
    ):
        quality.merge(part)
        if progress is not None:
            progress(len(quality.images), len(pairs))
    report = quality.compute()
    report.notes += [note for note in (remapped, joined) if note]
    return report


@dataclass(frozen=True)
class _Side:
    """Ground truth or prediction of one image: its PNG, the opening of messages, its segments [S, 4] int64."""

    png: Path
    where: str
    rows: np.ndarray


@dataclass(frozen=True)
class _Pair:
    """Both sides of one image, and its (height, width) if the ground truth states it."""

    image_id: int | str
    file_name: str
    size: tuple[int, int] | None
    gt: _Side
    pred: _Side


def _evaluate(categories: Categories, pairs: Sequence[_Pair]) -> PanopticQuality:
    quality = PanopticQuality(categories)
    for pair in pairs:
        gt = read_runs(pair.gt.png, pair.size)
        pred = read_runs(pair.pred.png, gt.shape)
        gt_side = Side.of(gt, pair.gt.rows, pair.gt.where)
        pred_side = Side.of(pred, pair.pred.rows, pair.pred.where)
        quality.add(gt_side, pred_side, pair.image_id, pair.file_name)
    return quality


def _pairs(
    gt: PanopticJson, pred: PanopticJson, gt_dir: Path, pred_dir: Path, classes: np.ndarray
) -> tuple[list[_Pair], str | None]:
    """Join the images of both sides.

    Returns:
        Pairs in the ground truth's order, and a note if they were joined by file names.
    """
    matches, note = _join(gt, pred)
    table = pred.table.copy()
    table[:, CLASS] = classes[table[:, CLASS]]
    pairs = []
    for annotation, match in zip(gt.annotations, matches, strict=True):
        image = gt.images.get(annotation.image_id, ImageEntry(None, None))
        rows = table[match.rows]
        where = f"{pred.path}: image {match.image_id} ({pred_dir / match.file_name})"
        if (rows[:, CLASS] < 0).any():
            n = match.rows.start + int((rows[:, CLASS] < 0).argmax())
            category = pred.categories[int(pred.table[n, CLASS])]
            raise RefineError(
                f"{where}: segment {pred.table[n, ID]}: category {category} is not in {gt.path}; predict its "
                f"categories"
            )
        png = gt_dir / annotation.file_name
        pairs.append(
            _Pair(
                annotation.image_id,
                image.file_name or annotation.file_name,
                image.size,
                _Side(png, f"{gt.path}: image {annotation.image_id} ({png})", gt.table[annotation.rows]),
                _Side(pred_dir / match.file_name, where, rows),
            )
        )
    return pairs, note


def _join(gt: PanopticJson, pred: PanopticJson) -> tuple[list[Annotation], str | None]:
    """Find the prediction of each annotation: by image id, or by file name where the ids are numbered otherwise.

    Returns:
        A prediction per annotation of the ground truth, and a note if names had to decide.

    Raises:
        RefineError: predictions are missing, of images that are not in the ground truth, or ids mean
            different images and the names do not tell which.
    """
    by_id = {annotation.image_id: annotation for annotation in pred.annotations}
    wanted = [annotation.image_id for annotation in gt.annotations]
    missing = [image_id for image_id in wanted if image_id not in by_id]
    differing = [i for i in wanted if i in by_id and not same_image(i, _name(gt, i), _name(pred, i))]
    if missing or differing:
        by_name = _join_names(gt, pred)
        if by_name is not None:
            return by_name, f"{pred.path} numbers the images differently from {gt.path}: joined by file name"
    if differing:
        names = [shown(_name(side, differing[0])) for side in (pred, gt)]
        raise RefineError(
            f"{pred.path}: image {differing[0]} is {names[0]}, but {names[1]} in {gt.path}; predict with the ids "
            f"of the ground truth"
        )
    if missing:
        raise RefineError(
            f"{pred.path}: {len(missing)} images have no prediction, first image {missing[0]}; predict every image"
        )
    extra = list(by_id.keys() - set(wanted))
    if extra:
        raise RefineError(f"{pred.path}: image {extra[0]} is not in {gt.path}; drop it or name the right split")
    return [by_id[image_id] for image_id in wanted], None


def _join_names(gt: PanopticJson, pred: PanopticJson) -> list[Annotation] | None:
    """Find the prediction of each annotation by its image's name without folder and suffix.

    Returns:
        None if a name is missing or not unique, or the two sides do not have the same names.
    """
    sides: list[dict[str, Annotation]] = []
    for side in (gt, pred):
        names = [_name(side, annotation.image_id) for annotation in side.annotations]
        stems = {
            PurePath(name).stem: a for name, a in zip(names, side.annotations, strict=True) if name is not None
        }
        if len(stems) < len(side.annotations):
            return None
        sides.append(stems)
    return [sides[1][stem] for stem in sides[0]] if sides[0].keys() == sides[1].keys() else None


def _name(side: PanopticJson, image_id: int | str) -> str | None:
    return side.images[image_id].file_name if image_id in side.images else None


def _pred_classes(gt: PanopticJson, pred: PanopticJson) -> tuple[np.ndarray, str | None]:
    """Find the ground truth's class of each category that the predictions state themselves.

    Returns:
        [C] int64, contiguous class by the predictions' own, -1 if the ground truth has no such category; and
        a note if ids differ, so that names decided.

    Raises:
        RefineError: an id has two names, or a name two kinds, which leaves open what is meant.
    """
    by_name = {category.name: category for category in gt.categories}
    classes, moved = np.full(len(pred.categories), -1), []
    for n, category in enumerate(pred.categories):
        same = by_name.get(category.name)
        if same is None and category.id in gt.categories:
            same = gt.categories[gt.categories.index(category.id)]
        if same is not None and (same.name, same.isthing) != (category.name, category.isthing):
            raise RefineError(
                f"{pred.path}: category {category.id} is {category}, but category {same.id} is {same} in "
                f"{gt.path}; predict with the categories of the ground truth"
            )
        if same is not None:
            classes[n] = gt.categories.index(same.id)
            moved += [category] if same.id != category.id else []
    if not moved:
        return classes, None
    names = ", ".join(shown(category.name) for category in moved[:3]) + (", …" if len(moved) > 3 else "")
    return classes, f"{pred.path} numbers categories differently from {gt.path}: joined by name ({names})"


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
