"""Which images to read: files, folders and patterns. Nothing here imports torch."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePath

from refine.errors import RefineError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm"}


@dataclass(frozen=True)
class ImageFile:
    """One image to read.

    Attributes:
        path: the file.
        name: relative path with "/" that names the image in results.
        id: image id in results.
        size: (height, width) in pixels that a data set states, or None.
    """

    path: Path
    name: str
    id: int | str
    size: tuple[int, int] | None = None


def list_images(
    sources: Sequence[str],
    *,
    recursive: bool = False,
    skip: str | Path | None = None,
    tell: Callable[[str], None] = lambda note: None,
) -> list[ImageFile]:
    """List the images of files, folders and patterns, each once, sorted within a source, with ids from 1.

    A file is named by its last part, one found in a folder or by a pattern by its path below that folder, or below
    the pattern's part without wildcards. Hidden files and folders are left out of folders, as shells do.

    Args:
        sources: paths and glob patterns ("**" takes any number of folders).
        recursive: read the subfolders of folders too.
        skip: folder that is left out even if it lies in a source, such as that of the results.
        tell: called with one line about images that are left out.

    Raises:
        RefineError: a source holds no image.
    """
    found: dict[Path, str] = {}
    for source in sources:
        path = Path(source)
        if path.is_dir():
            files, root = sorted(_in_folder(path, recursive, skip)), path
            _tell_of_subfolders(path, recursive, skip, bool(files), tell)
        elif path.exists():
            files, root = [path], path.parent
        else:
            files, root = sorted(_matching(source)), _fixed_part(source)
        if not files:
            raise RefineError(f"{source}: no image there; give a file, a folder or a pattern in quotes")
        for file in files:
            found.setdefault(file, PurePath(file).relative_to(root).as_posix())
    return [ImageFile(path, name, number) for number, (path, name) in enumerate(found.items(), 1)]


def result_names(files: Iterable[ImageFile]) -> dict[str, ImageFile]:
    """Map the name of each image without its suffix, which names its results, to the image.

    Raises:
        RefineError: two images have the same.
    """
    names: dict[str, ImageFile] = {}
    for file in files:
        name = PurePath(file.name).with_suffix("").as_posix()
        if name in names:
            raise RefineError(
                f"{file.path}: its results would be named {name!r} like those of {names[name].path}; rename one, "
                "or give the folder above both with --recursive"
            )
        names[name] = file
    return names


def _in_folder(folder: Path, recursive: bool, skip: str | Path | None) -> Iterator[Path]:
    """Images of a folder; links to folders are followed once."""
    seen = set() if skip is None else {os.path.realpath(skip)}
    for here, folders, files in os.walk(folder, followlinks=True):
        for name in list(folders):
            real = os.path.realpath(os.path.join(here, name))
            if not recursive or name.startswith(".") or real in seen:
                folders.remove(name)
            seen.add(real)
        yield from (Path(here, name) for name in files if _is_image(name))


def _is_image(name: str) -> bool:
    return not name.startswith(".") and PurePath(name).suffix.lower() in SUFFIXES


def _tell_of_subfolders(
    folder: Path, recursive: bool, skip: str | Path | None, some: bool, tell: Callable[[str], None]
) -> None:
    """Say, or raise where nothing else was found, that there are images one level below a folder."""
    if recursive:
        return
    seen = "" if skip is None else os.path.realpath(skip)
    below = [
        p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".") and os.path.realpath(p) != seen
    ]
    holding = [p for p in below if os.access(p, os.R_OK | os.X_OK) and any(map(_is_image, os.listdir(p)))]
    if holding and not some:
        raise RefineError(f"{folder}: no image there, but in its subfolders; add --recursive to read them")
    if holding:
        tell(f"{folder}: {len(holding)} of its subfolders hold images, which are left out; --recursive reads them")


def _matching(pattern: str) -> Iterator[Path]:
    return (
        p for p in map(Path, glob.glob(pattern, recursive=True)) if p.suffix.lower() in SUFFIXES and p.is_file()
    )


def _fixed_part(pattern: str) -> Path:
    return Path(*takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts))
