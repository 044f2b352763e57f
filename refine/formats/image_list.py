"""Listing of image files from paths, folders and patterns. This module does not import torch."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import takewhile
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Literal

from refine.errors import RefineError
from refine.formats.stream import is_results_json
from refine.storage import Location, Url, list_folder, local_copy, location

SLIDES = {".svs", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".svslide", ".bif"}
"""Suffixes of slides that OpenSlide reads."""
SUFFIXES = SLIDES | {
    *(".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm", ".heic", ".avif")
}
VIDEOS = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv"}
"""Suffixes of videos, which are listed if they are named themselves, not in folders: phones store many beside
photographs."""
RESULTS = {"panoptic", "overlays", "labels", "classes", "cutouts"}
"""Subfolders of a folder of results that hold images."""


if TYPE_CHECKING:  # imports NumPy, which listing does not need
    from refine.formats.raw import ImageOptions


@dataclass(frozen=True)
class ImageFile:
    """One image to read.

    Attributes:
        path: path or URL of the file.
        name: relative path with "/" that identifies the image in results.
        id: image id in results.
        size: (height, width) in pixels stated by the data set, or None.
        page: number, from 1, of the page or frame of the file that is this image; None if the file is one image, or
            options choose the page.
    """

    path: Location
    name: str
    id: int | str
    size: tuple[int, int] | None = None
    page: int | None = None

    def reading(self, options: ImageOptions) -> ImageOptions:
        """Return the options to read this image with."""
        return options if self.page is None else replace(options, page=self.page)


def list_images(
    sources: Sequence[str],
    *,
    recursive: bool = False,
    skip: str | Path | None = None,
    notify: Callable[[str], None] = lambda note: None,
) -> list[ImageFile]:
    """List the images of files, folders and patterns, each once, sorted within a source, with ids from 1.

    The name of a file is its last path component; the name of an image found in a folder or by a pattern is its
    path relative to that folder or to the part of the pattern without wildcards. Hidden files and folders are
    skipped, as in shells, and so are results of earlier runs.

    Args:
        sources: paths, URLs and glob patterns ("**" matches any number of folders).
        recursive: whether to search subfolders of folders.
        skip: folder to skip even if it lies in a source, such as the folder of results.
        notify: called with a one-line note about skipped images.

    Raises:
        RefineError: a source contains no image.
    """
    found: dict[Location, str] = {}
    for source in sources:
        path = location(source)
        if isinstance(path, Url):
            found |= {url: name for url, name in _in_store(path, recursive, skip) if url not in found}
            continue
        if path.is_dir():
            files, root = sorted(_in_folder(path, recursive, skip, notify)), path
            _check_subfolders(path, recursive, skip, bool(files), notify)
        elif path.exists():
            files, root = [path], path.parent
        else:
            root = _fixed_part(source)
            files = _without_results(sorted(_matching(source)), root, skip, notify)
        if not files:
            raise _no_image(path)
        for file in files:
            found.setdefault(file, PurePath(file).relative_to(root).as_posix())
    return [ImageFile(path, name, number) for number, (path, name) in enumerate(found.items(), 1)]


def list_pages(files: Iterable[ImageFile], page: int | Literal["all"] | None) -> list[ImageFile]:
    """Replace each file that has several images by these: videos by their frames, others only if `page` is "all".

    The first image of clip.mp4 has the name clip/000001.png, as `ffmpeg -i clip.mp4 -fps_mode passthrough
    clip/%06d.png` gives it; that of stack.tif has the name stack/000001.tif. Ids count the images from 1.

    Args:
        files: files as listed by `list_images`.
        page: "all"; or the number of the only page or frame to read; or None.

    Raises:
        RefineError: a file cannot be read, or a package that its format needs is missing.
    """
    images: list[ImageFile] = []
    for file in files:
        is_video = file.path.suffix.lower() in VIDEOS
        wanted = (is_video and page is None) or (page == "all" and file.path.suffix.lower() not in SLIDES)
        count = _count_pages(file.path, is_video) if wanted else 1
        if count == 1 and not (is_video and wanted):
            images.append(replace(file, id=len(images) + 1))
            continue
        name = PurePath(file.name)
        suffix = ".png" if is_video else name.suffix
        for n in range(1, count + 1):
            frame = (name.with_suffix("") / f"{n:06d}{suffix}").as_posix()
            images.append(replace(file, name=frame, id=len(images) + 1, page=n))
    return images


def _count_pages(place: Location, is_video: bool) -> int:
    with local_copy(place) as path:
        if is_video:
            from refine.formats.video import count_frames

            return count_frames(path)
        from refine.formats.images import count_pages  # imported late: imports torch

        return count_pages(path)


def _in_store(source: Url, recursive: bool, skip: str | Path | None) -> list[tuple[Url, str]]:
    """Return the images of a URL, which is a file, a folder or a pattern, with their names."""
    if glob.has_magic(str(source)):
        root = Url("/".join(takewhile(lambda part: not glob.has_magic(part), str(source).split("/"))))
        files = list(root.glob(str(source).removeprefix(f"{root}/")))
    elif source.is_file():
        return [(source, source.name)]
    else:
        root, files = source, list_folder(source, recursive)
    if skip is not None:
        files = [url for url in files if not str(url).startswith(f"{location(str(skip))}/")]
    images = [(url, str(url).removeprefix(f"{root}/")) for url in files if _is_image(url.name)]
    if not images:
        raise _no_image(source)
    return images


def _no_image(source: Location) -> RefineError:
    """Return the error for a source without an image: a wrong path, a wrong pattern, or a folder without images."""
    if source.exists():
        return RefineError(f"{source}: contains no image; give a file, a folder or a pattern in quotes")
    if glob.has_magic(str(source)):
        return RefineError(f"{source}: no image matches this pattern; check it, and put it in quotes")
    return RefineError(f"{source}: does not exist; check the path")


def result_names(files: Iterable[ImageFile]) -> dict[str, ImageFile]:
    """Map the name of each image's results, its name without the suffix, to the image.

    Raises:
        RefineError: the results of two images would have the same name.
    """
    names: dict[str, ImageFile] = {}
    for file in files:
        name = PurePath(file.name).with_suffix("").as_posix()
        if name in names:
            first = names[name].path
            apart = isinstance(first, Path) and isinstance(file.path, Path) and first.parent != file.path.parent
            fix = ", or give the folder above both with --recursive" if apart else ""
            raise RefineError(
                f"{file.path}: its results would be named {name!r} like those of {first}; rename one{fix}"
            )
        names[name] = file
    return names


def _has_results(folder: Path) -> bool:
    """Return whether results of refine were written into a folder, beside images or not."""
    path = folder / "panoptic.json"
    return path.is_file() and os.access(path, os.R_OK) and is_results_json(path)


def _without_results(
    files: list[Path], root: Path, skip: str | Path | None, notify: Callable[[str], None]
) -> list[Path]:
    """Leave out the files of a pattern that lie in `skip` or are results; `root` is its part without wildcards."""
    skipped = None if skip is None else os.path.realpath(skip)
    has_results, real = cache(_has_results), cache(os.path.realpath)
    left, results = [], set()
    for file in files:
        above = file.parents[: len(file.relative_to(root).parts) - 1]
        found = {p.parent for p in above if p.name in RESULTS and has_results(p.parent)}
        results |= found
        if not found and not any(real(p) == skipped for p in above):
            left.append(file)
    for folder in sorted(results):
        notify(f"{folder}: skipped the results of refine in it")
    return left


def _in_folder(
    folder: Path, recursive: bool, skip: str | Path | None, notify: Callable[[str], None]
) -> Iterator[Path]:
    """Yield the images of a folder; links to folders are followed once."""
    seen = set() if skip is None else {os.path.realpath(skip)}
    for here, folders, files in os.walk(folder, followlinks=True):
        if recursive and (results := RESULTS & set(folders)) and _has_results(Path(here)):
            folders[:] = [name for name in folders if name not in results]
            notify(f"{here}: skipped the results of refine in it")
        for name in list(folders):
            real = os.path.realpath(os.path.join(here, name))
            if not recursive or name.startswith(".") or real in seen:
                folders.remove(name)
            seen.add(real)
        yield from (Path(here, name) for name in files if _is_image(name))


def _is_image(name: str) -> bool:
    return not name.startswith(".") and PurePath(name).suffix.lower() in SUFFIXES


def _check_subfolders(
    folder: Path, recursive: bool, skip: str | Path | None, found: bool, notify: Callable[[str], None]
) -> None:
    """Note that subfolders with images are skipped; raise RefineError if no other image was found."""
    if recursive:
        return
    seen = "" if skip is None else os.path.realpath(skip)
    below = [
        p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".") and os.path.realpath(p) != seen
    ]
    skipped = [p for p in below if os.access(p, os.R_OK | os.X_OK) and any(map(_is_image, os.listdir(p)))]
    if skipped and not found:
        raise RefineError(f"{folder}: contains images only in subfolders; add --recursive to read them")
    if skipped:
        notify(f"{folder}: skipped subfolders with images ({len(skipped)}); add --recursive to read them")


def _matching(pattern: str) -> Iterator[Path]:
    found = map(Path, glob.glob(pattern, recursive=True))
    return (path for path in found if path.suffix.lower() in SUFFIXES | VIDEOS and path.is_file())


def _fixed_part(pattern: str) -> Path:
    return Path(*takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts))
