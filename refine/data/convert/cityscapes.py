"""Cityscapes in its original layout, read as `refine.data.cityscapes` does."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from refine.data.cityscapes import CATEGORIES, classify, list_frames, unannotated, unknown_values
from refine.data.convert.source import LabelMap, ReadOptions, Sample, Source, SourceClass, choose_split
from refine.errors import RefineError, counted
from refine.formats.id_png import read_gray
from refine.formats.runs import Runs
from refine.structures import VOID


def recognise(path: Path) -> bool:
    return (path / "gtFine").is_dir()


def read(path: Path, options: ReadOptions) -> Source:
    """List the frames of a split; the classes and ids are those of the benchmark.

    Pixels of a thing class without an instance number are a crowd; labels outside the benchmark are void.

    Raises:
        RefineError: there is no annotated frame.
    """
    splits = sorted(p.name for p in (path / "gtFine").glob("*") if p.is_dir())
    split = choose_split(str(path / "gtFine"), splits, options.split)
    samples = [
        Sample(f"{image.parent.name}/{image.name}", image, ids, partial(_read, ids))
        for image, ids in list_frames(path, split)
    ]
    without = len(unannotated(path, split))
    notes = [f"{path}: left out: {counted(without, 'frame')} of {split} without annotation"] if without else []
    classes = [SourceClass(c.name, c.id, c.isthing, c.color, c.supercategory) for c in CATEGORIES]
    return Source(classes, samples, notes=notes)


def _read(file: Path) -> LabelMap:
    values = read_gray(file)
    found = Runs.from_map(values).areas()[0]
    unknown = unknown_values(found)
    if unknown.size:
        raise RefineError(f"{file}: value {unknown[0]} is not a Cityscapes label; copy the file again")
    labels = {
        value: (None if index == VOID else CATEGORIES[index].name, crowd)
        for value, index, crowd in zip(found.tolist(), *(each.tolist() for each in classify(found)), strict=True)
    }
    return LabelMap(values, labels)
