"""PQ of result files against ground-truth files, without a model."""

from __future__ import annotations

import itertools
import os
import posixpath
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from refine.cores import available_cores
from refine.errors import RefineError, counted, shown
from refine.evaluation.in_order import in_order
from refine.evaluation.matching import Side
from refine.evaluation.pq import PanopticQuality
from refine.evaluation.report import PQReport
from refine.files import no_collection
from refine.formats.id_png import read_runs
from refine.formats.id_tiff import is_id_tiff, read_tiff_runs
from refine.formats.panoptic_json import Annotation, ImageEntry, PanopticJson, differing_names
from refine.formats.runs import Runs
from refine.formats.segments_info import CLASS, ID
from refine.structures import Categories

if TYPE_CHECKING:
    from pathlib import Path

TOGETHER = 16
"""Number of images per task of a thread."""


def evaluate_files(
    gt_json: str | Path,
    gt_dir: str | Path,
    pred_json: str | Path,
    pred_dir: str | Path,
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PQReport:
    """Compute PQ from COCO panoptic files. Except for the JSON, memory depends only on `workers`.

    Args:
        gt_json, pred_json: COCO panoptic JSON of ground truth and predictions. Categories are those of the ground
            truth. If the predictions list `images` or `categories` with other ids, both are matched by name, and
            the report notes it.
        gt_dir, pred_dir: folders of the id-PNGs, or of TIFF files as `refine predict` writes them for large images.
        workers: number of threads; one per core if None.
        progress: called from the calling thread with the number of finished images and of all images.

    Raises:
        RefineError: a file is missing, damaged or contradicts another; the first such image in the order of
            the ground truth is reported.
    """
    with no_collection():
        gt = PanopticJson(gt_json, needs=("annotations", "categories"), large=True)
        pred = PanopticJson(pred_json, needs=("annotations",), categories=gt.categories, large=True)
        for side in (gt, pred):
            side.content.clear()  # the tables have all that PQ needs
    quality = PanopticQuality(gt.categories)
    classes, remapped = _pred_classes(gt, pred)
    pairs, joined = _pairs(gt, pred, gt_dir, pred_dir, classes)
    for part in in_order(
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


class _Side(NamedTuple):
    """Ground truth or prediction of one image: its map, the prefix of messages and its segments, [S, 4] int64."""

    map: str
    where: str
    rows: np.ndarray


class _Pair(NamedTuple):
    """Ground truth and prediction of one image, and its (height, width) in pixels if the ground truth states it."""

    image_id: int | str
    file_name: str
    size: tuple[int, int] | None
    gt: _Side
    pred: _Side


def _evaluate(categories: Categories, pairs: Sequence[_Pair]) -> PanopticQuality:
    quality = PanopticQuality(categories)
    for pair in pairs:
        gt = _read(pair.gt.map, pair.size)
        pred = _read(pair.pred.map, gt.shape)
        gt_side = Side.of(gt, pair.gt.rows, pair.gt.where)
        pred_side = Side.of(pred, pair.pred.rows, pair.pred.where)
        quality.add(gt_side, pred_side, pair.image_id, pair.file_name)
    return quality


def _read(path: str, size: tuple[int, int] | None) -> Runs:
    return read_tiff_runs(path, size) if is_id_tiff(path) else read_runs(path, size)


def _pairs(
    gt: PanopticJson, pred: PanopticJson, gt_dir: str | Path, pred_dir: str | Path, classes: np.ndarray
) -> tuple[list[_Pair], str | None]:
    """Pair the annotations of ground truth and predictions.

    Returns:
        Pairs in the order of the ground truth, and a note if they were matched by file name.
    """
    matches, note = _join(gt, pred)
    table = pred.table.copy()
    table[:, CLASS] = classes[table[:, CLASS]]
    pairs = []
    for annotation, match in zip(gt.annotations, matches, strict=True):
        image = gt.images.get(annotation.image_id, ImageEntry(None, None))
        rows = table[match.rows]
        png, pred_png = os.path.join(gt_dir, annotation.file_name), os.path.join(pred_dir, match.file_name)
        where = f"{pred.path}: image {match.image_id} ({pred_png})"
        if (rows[:, CLASS] < 0).any():
            n = match.rows.start + int((rows[:, CLASS] < 0).argmax())
            category = pred.categories[int(pred.table[n, CLASS])]
            raise RefineError(
                f"{where}: segment {pred.table[n, ID]}: category {category} is not in {gt.path}; predict the "
                f"categories of the ground truth"
            )
        pairs.append(
            _Pair(
                annotation.image_id,
                image.file_name or annotation.file_name,
                image.size,
                _Side(png, f"{gt.path}: image {annotation.image_id} ({png})", gt.table[annotation.rows]),
                _Side(pred_png, where, rows),
            )
        )
    return pairs, note


def _join(gt: PanopticJson, pred: PanopticJson) -> tuple[list[Annotation], str | None]:
    """Find the prediction of each annotation by name if both sides have the same names, else by image id.

    Returns:
        One prediction per annotation of the ground truth, and a note if ids and names disagree.

    Raises:
        RefineError: a prediction is missing or of an image that is not in the ground truth, or equal ids mean
            different images that cannot be matched by name.
    """
    by_id = {annotation.image_id: annotation for annotation in pred.annotations}
    image_ids = [annotation.image_id for annotation in gt.annotations]
    by_name = _join_names(gt, pred)
    if by_name is not None:
        note = f"{pred.path} numbers the images differently from {gt.path}: matched by file name"
        return by_name, None if by_name == [by_id.get(image_id) for image_id in image_ids] else note
    names = {i: image.file_name for i, image in gt.images.items()}
    for number, name, other in differing_names(names, {i: image.file_name for i, image in pred.images.items()}):
        if number in by_id:
            raise RefineError(
                f"{pred.path}: image {number} is {shown(name)}, but {shown(other)} in {gt.path}; predict with the "
                f"ids of the ground truth"
            )
    missing = [image_id for image_id in image_ids if image_id not in by_id]
    if missing:
        raise RefineError(
            f"{pred.path}: no prediction for {counted(len(missing), 'image')}, first image {missing[0]}; predict "
            f"every image"
        )
    extra = list(by_id.keys() - set(image_ids))
    if extra:
        raise RefineError(f"{pred.path}: image {extra[0]} is not in {gt.path}; drop it or use the right split")
    return [by_id[image_id] for image_id in image_ids], None


def _join_names(gt: PanopticJson, pred: PanopticJson) -> list[Annotation] | None:
    """Find the prediction of each annotation by the name of the image, or of the PNG if the image has none.

    Returns:
        One prediction per annotation; None unless the names are unique and the same on both sides: as paths, as
        paths relative to the common folder of a side without suffix, or at least without folder and suffix.
    """
    of_gt, of_pred = _names(gt), _names(pred)[:1]
    for key in (_whole, _below_common_folder, _stems):
        for names, others in itertools.product(of_gt, of_pred):
            truths = dict(zip(key(names), gt.annotations, strict=True))
            results = dict(zip(key(others), pred.annotations, strict=True))
            if len(truths) == len(names) and len(results) == len(others) and truths.keys() == results.keys():
                return [results[name] for name in truths]
    return None


def _names(side: PanopticJson) -> list[list[str]]:
    """Return the names of all annotated images and those of their PNGs, if they are complete and informative."""
    images = [side.images.get(a.image_id, ImageEntry(None, None)).file_name for a in side.annotations]
    pngs = [a.file_name for a in side.annotations]
    found = [[name for name in images if name is not None]]
    numbers = zip(_stems(pngs), side.annotations, strict=True)
    if not all(stem.isdecimal() and str(int(stem)) == str(a.image_id) for stem, a in numbers):
        found.append(pngs)  # names that only repeat the ids are not informative
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
    """Map the categories of the predictions to classes of the ground truth.

    Returns:
        [C] int64, contiguous class of the ground truth by class of the predictions, -1 if it has no such
        category; and a note if ids differ, so that categories were matched by name.

    Raises:
        RefineError: an id has two names, or a name is a thing on one side and stuff on the other.
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
    return classes, f"{pred.path} numbers categories differently from {gt.path}: matched by name ({names})"
