"""What the reader of every format returns: classes, and images with objects."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from refine.errors import RefineError, did_you_mean, shown
from refine.files import name_problem


@dataclass(frozen=True)
class SourceClass:
    """Class of a data set as its format states it.

    Attributes:
        name: name of the class.
        id: category id in the data set, or None if the format has none.
        isthing: whether it is countable.
        color: RGB, 0-255, or () if the format states none.
        supercategory: name of the coarse group, or "".
    """

    name: str
    id: int | None = None
    isthing: bool = True
    color: tuple[int, int, int] | tuple[()] = ()
    supercategory: str = ""


@dataclass(frozen=True)
class Region:
    """One object, crowd or stuff region; regions may overlap.

    Attributes:
        label: name of its class; None if its pixels are void.
        code: compressed run lengths of its mask, as `refine.formats.rle.compressed` returns them.
        where: place in the file, for messages.
        iscrowd: whether it is a crowd.
        depth: explicit order that the format states; regions of greater depth lie in front.
    """

    label: str | None
    code: dict[str, Any]
    where: str
    iscrowd: bool = False
    depth: int = 0


@dataclass(frozen=True)
class Regions:
    """Annotation of an image by regions in the order of the file.

    Attributes:
        size: (height, width) of the image in pixels.
        regions: regions.
    """

    size: tuple[int, int]
    regions: Sequence[Region]


@dataclass(frozen=True)
class LabelMap:
    """Annotation of an image by one value per pixel.

    Attributes:
        values: [H, W] integer.
        labels: value -> (name of the class or None for void, iscrowd); each value is one object or stuff region.
            Pixels of other values are unlabelled.
    """

    values: np.ndarray
    labels: Mapping[int, tuple[str | None, bool]]


@dataclass(frozen=True)
class Sample:
    """Image with its annotation.

    Attributes:
        name: relative path of the image in the result.
        image: path of the image, or a function that returns the content of its file.
        file: file with the annotation, for messages.
        read: returns the annotation.
        id: image id in the data set, or None if the format has none.
        others: further files that the annotation depends on.
    """

    name: str
    image: Path | Callable[[], bytes]
    file: Path
    read: Callable[[], LabelMap | Regions]
    id: int | str | None = None
    others: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Source:
    """Data set to convert.

    Attributes:
        classes: classes in the order of the format.
        samples: images.
        background: name of the stuff class of unlabelled pixels; None if they are void.
        notes: remarks on the data set, one line each.
        skipped: number of annotations that have no pixels, such as points, by their kind; filled while reading.
    """

    classes: Sequence[SourceClass]
    samples: Sequence[Sample]
    background: str | None = None
    notes: Sequence[str] = ()
    skipped: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class ReadOptions:
    """Options of the readers; each format uses some, see `refine.data.convert.formats`.

    Attributes:
        images: folder of images, or None for where the format usually has them.
        labels: folder of label images, or None for where they usually are.
        split: split to convert, such as "train"; None if there is one.
        name: class of the objects, for formats without classes.
        page: page of label images that are stacks, from 1; None refuses several.
    """

    images: Path | None = None
    labels: Path | None = None
    split: str | None = None
    name: str = "object"
    page: int | None = None


def inside(root: Path, name: Any, where: str, folder: str = "") -> Path:
    """Return the path of a file that a data set names.

    Args:
        root: folder that the path must not leave.
        name: name from a file, relative to `folder`, with slashes or backslashes.
        where: file and field, for messages.
        folder: path below `root`.

    Raises:
        RefineError: it is not a name, or it leads out of the folder.
    """
    relative = (
        posixpath.normpath(posixpath.join(folder, name.replace("\\", "/"))) if isinstance(name, str) else name
    )
    if problem := name_problem(relative):
        raise RefineError(f"{where}: {problem.replace('file_name', 'the name', 1)}")
    return root / relative


def existing(folders: Iterable[Path], name: str, where: str, fix: str) -> Path:
    """Return the first of several folders that contains a file.

    Raises:
        RefineError: none contains it; the message names all and ends in `fix`.
    """
    tried = list(dict.fromkeys(folders))
    for folder in tried:
        if (folder / name).is_file():
            return folder
    raise RefineError(f"{where}: {shown(name)} is in none of {', '.join(map(str, tried))}; {fix}")


def choose_split(where: str, splits: Sequence[str], wanted: str | None) -> str:
    """Return the split to convert.

    Raises:
        RefineError: there are several and none is chosen, or there is no such split.
    """
    if wanted in splits:
        return str(wanted)
    if wanted is None and len(splits) == 1:
        return splits[0]
    found = f"has the splits {', '.join(splits)}" if splits else "has no split"
    other = f", not {wanted}{did_you_mean(wanted, splits)}" if wanted else ""
    raise RefineError(f"{where}: {found}; choose one with --split{other}")


def relative_name(path: Path, root: Path) -> str:
    """Return the path of an image below a folder, with slashes."""
    return PurePath(path).relative_to(root).as_posix()
