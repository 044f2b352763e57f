"""Videos of the overlays of all frames of a video."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path, PurePath

import numpy as np
from PIL import Image

from refine.formats.image_list import VIDEOS, ImageFile
from refine.formats.video import frame_rate, write_video
from refine.storage import Location, local_copy


def write_overlay_videos(files: Iterable[ImageFile], folder: Path, failed: Collection[str] = ()) -> list[Path]:
    """Join the overlays of the frames of each video to a video of the same rate, beside their folder.

    Frames that failed are left out, also if they have an overlay of an earlier run. A video without such frames
    that is newer than its overlays is kept.

    Args:
        files: all images of the run, in order.
        folder: folder of the overlays.
        failed: names of the images that failed.

    Returns:
        Paths of the videos.

    Raises:
        WriteError: a video cannot be written.
    """
    frames: dict[Location, list[ImageFile]] = {}
    for file in files:
        if file.page is not None and file.path.suffix.lower() in VIDEOS:
            frames.setdefault(file.path, []).append(file)
    written = []
    for video, parts in frames.items():
        names = [file.name for file in parts if file.name not in failed]
        overlays = [path for name in names if (path := folder / PurePath(name).with_suffix(".jpg")).exists()]
        if overlays:
            target = overlays[0].parent.with_name(f"{overlays[0].parent.name}.mp4")
            newest = max(path.stat().st_mtime for path in overlays)
            if len(names) < len(parts) or not target.exists() or target.stat().st_mtime < newest:
                with local_copy(video) as path:
                    write_video(target, _decoded(overlays), frame_rate(path))
            written.append(target)
    return written


def _decoded(paths: Sequence[Path]) -> Iterator[np.ndarray]:
    for path in paths:
        with Image.open(path) as image:
            yield np.asarray(image)
