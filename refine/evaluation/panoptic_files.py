"""PQ of result files against ground-truth files, without any model."""

from __future__ import annotations

import itertools
import posixpath
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refine.cores import available_cores
from refine.errors import RefineError, shown
from refine.evaluation.matching import Side
from refine.evaluation.pq import PanopticQuality
from refine.evaluation.report import PQReport
from refine.formats.id_png import read_runs
from refine.formats.panoptic_json import Annotation, ImageEntry, PanopticJson, differing_names
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
    """Find the prediction of each annotation: by name if both sides name the same images, else by image id.

    Returns:
        A prediction per annotation of the ground truth, and a note if the ids say something else than the names.

    Raises:
        RefineError: predictions are missing, of images that are not in the ground truth, or ids mean
            different images and the names do not tell which.
    """
    by_id = {annotation.image_id: annotation for annotation in pred.annotations}
    wanted = [annotation.image_id for annotation in gt.annotations]
    by_name = _join_names(gt, pred)
    if by_name is not None:
        note = f"{pred.path} numbers the images differently from {gt.path}: joined by file name"
        return by_name, None if by_name == [by_id.get(image_id) for image_id in wanted] else note
    names = {i: image.file_name for i, image in gt.images.items()}
    for number, name, other in differing_names(names, {i: image.file_name for i, image in pred.images.items()}):
        if number in by_id:
            raise RefineError(
                f"{pred.path}: image {number} is {shown(name)}, but {shown(other)} in {gt.path}; predict with the "
                f"ids of the ground truth"
            )
    missing = [image_id for image_id in wanted if image_id not in by_id]
    if missing:
        raise RefineError(
            f"{pred.path}: {len(missing)} images have no prediction, first image {missing[0]}; predict every image"
        )
    extra = list(by_id.keys() - set(wanted))
    if extra:
        raise RefineError(f"{pred.path}: image {extra[0]} is not in {gt.path}; drop it or name the right split")
    return [by_id[image_id] for image_id in wanted], None


def _join_names(gt: PanopticJson, pred: PanopticJson) -> list[Annotation] | None:
    """Find the prediction of each annotation by the names of the images, or of the PNGs where they have none.

    Returns:
        None unless all names are unique and the same on both sides: whole, without suffix below the folder that
        all of a side share, or at least without any folder.
    """
    of_gt, of_pred = _names(gt), _names(pred)[:1]
    for key in (_whole, _below_common_folder, _stems):
        for names, others in itertools.product(of_gt, of_pred):
            mine = dict(zip(key(names), gt.annotations, strict=True))
            theirs = dict(zip(key(others), pred.annotations, strict=True))
            if len(mine) == len(names) and len(theirs) == len(others) and mine.keys() == theirs.keys():
                return [theirs[name] for name in mine]
    return None


def _names(side: PanopticJson) -> list[list[str]]:
    """Names of all annotated images, and those of their PNGs; without those that say nothing."""
    images = [side.images.get(a.image_id, ImageEntry(None, None)).file_name for a in side.annotations]
    pngs = [a.file_name for a in side.annotations]
    found = [[name for name in images if name is not None]]
    numbers = zip(_stems(pngs), side.annotations, strict=True)
    if not all(stem.isdecimal() and str(int(stem)) == str(a.image_id) for stem, a in numbers):
        found.append(pngs)  # and do not only repeat the ids
    return [names for names in found if len(names) == len(side.annotations)]


def _whole(names: Sequence[str]) -> list[str]:
    return [name.replace("\\", "/") for name in names]


def _below_common_folder(names: Sequence[str]) -> list[str]:
    whole = _whole(names)
    start = len(posixpath.commonpath([posixpath.dirname(name) for name in whole]))
    return [posixpath.splitext(name[start:].lstrip("/"))[0] for name in whole]


def _stems(names: Sequence[str]) -> list[str]:
    return [posixpath.splitext(posixpath.basename(name))[0] for name in _whole(names)]


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
