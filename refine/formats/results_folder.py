"""Folders of results, and whether results may be written to them."""

from __future__ import annotations

from collections.abc import Iterable

from refine.errors import RefineError
from refine.formats.journal import JOURNAL
from refine.formats.shards import FAILED, FOLDER
from refine.formats.stream import SOURCES, is_results_json
from refine.storage import Location

TRACES = (SOURCES, FAILED, JOURNAL.replace(".", "*."), f"{FOLDER}/*")
"""Files of runs that failed, were interrupted, or wrote a shard, so that there is no panoptic.json."""


def check_results_folder(out: Location, names: Iterable[str] = ()) -> None:
    """Raise RefineError if results in `out` would replace files that refine did not write.

    Args:
        out: folder of the results.
        names: files and folders in it that would be written, beside panoptic.json and panoptic/.
    """
    path, pngs = out / "panoptic.json", out / "panoptic"
    foreign = [path] if path.is_file() and not is_results_json(path) else []
    if not (path.is_file() or any(any(out.glob(pattern)) for pattern in TRACES)):
        foreign += [place for place in (pngs, *(out / name for name in names)) if _holds_files(place)]
    if foreign:
        raise RefineError(
            f"{foreign[0]}: was not written by this version of refine, and would be replaced; choose another "
            "folder for the results, or move it away"
        )


def _holds_files(place: Location) -> bool:
    """Return whether a path is a file, or a folder with one; a run that failed leaves empty folders."""
    return place.is_file() or any(path.is_file() for path in place.glob("**/*"))
