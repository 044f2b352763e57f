"""What a format of results is: the files of one image, and the file that joins those of all images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from refine.storage import Location

if TYPE_CHECKING:  # they import torch, which would delay `refine predict --help`
    from torch import Tensor

    from refine.formats.image_like import ImageLike
    from refine.formats.raw import ImageOptions
    from refine.structures import Categories, PanopticResult, Segment

Part = tuple[dict[str, Any], Any]
"""Entry of `images` of the COCO JSON, and the content of the image's part."""


@dataclass(frozen=True)
class ImageResult:
    """Panoptic result of one image, with everything else that files about it contain.

    Attributes:
        result: panoptic result.
        file_name: relative file name of the image, with "/" and suffix.
        image: Tensor[3, H, W] uint8 RGB; None if unknown.
        mpp: micrometres per pixel; None stands for what the file `source` states.
        model: name of the model, or "".
        source: what the image was read from, whose values may have more than 8 bits; None if unknown.
        reading: options with which it was read.
    """

    result: PanopticResult
    file_name: str
    image: Tensor | None = None
    mpp: float | None = None
    model: str = ""
    source: ImageLike | None = None
    reading: ImageOptions | None = None

    @cached_property
    def ids(self) -> np.ndarray:
        """Segment ids, [H, W] int32."""
        ids: np.ndarray = self.result.segment_ids.cpu().numpy()
        return ids

    @cached_property
    def pixels(self) -> np.ndarray:
        """Pixels of the image, [H, W, 3] uint8 RGB.

        Raises:
            ValueError: there is no image, or its size differs from the result's.
        """
        if self.image is None:
            raise ValueError("this format needs the image; pass image=…")
        if tuple(self.image.shape[1:]) != self.ids.shape:
            raise ValueError(f"image {tuple(self.image.shape[1:])} and result {self.ids.shape} differ in size")
        pixels: np.ndarray = self.image.permute(1, 2, 0).cpu().numpy()
        return pixels

    @cached_property
    def channels(self) -> np.ndarray:
        """Values of the image as they are stored: [H, W, C], C 1 for grey images and 3 for RGB."""
        from refine.formats.stored_values import stored_values

        pixels = self.pixels
        found = None
        if self.source is not None:
            found = stored_values(self.source, self.reading, (pixels.shape[0], pixels.shape[1]))
        values = pixels if found is None else found
        is_grey = values.dtype == np.uint8 and (values == values[..., :1]).all()
        return values[..., :1] if is_grey else values

    @cached_property
    def resolution(self) -> float | None:
        """Micrometres per pixel; None if unknown."""
        if self.mpp is not None or not isinstance(self.source, str | Path):
            return self.mpp
        from refine.formats.resolution import stated_mpp

        return stated_mpp(Path(self.source), self.reading.page if self.reading else None)

    @property
    def things(self) -> list[Segment]:
        """Segments of thing classes."""
        return [segment for segment in self.result.segments if segment.isthing]

    def crop(self, segment: Segment) -> np.ndarray:
        """Return the pixels of a segment in its box: [height, width] bool."""
        x, y, width, height = segment.bbox
        mask: np.ndarray = self.ids[y : y + height, x : x + width] == segment.id
        return mask


@dataclass(frozen=True)
class Saver:
    """One format of results.

    Attributes:
        help: what it writes and what opens it, for `--help`.
        patterns: paths of an image's files below the folder of results. "{name}" stands for the image's name
            without suffix. A pattern with "{id}" stands for one file per thing.
        encode: returns the content of these files, in the same order.
        joint: name of the file that contains the results of all images, or None. Each image's file is then a JSON
            below `parts/` that this file is made from.
        join: returns the content of that file, from all parts and the categories.
        needs: package that the format needs and the extra that installs it, or None.
    """

    help: str
    patterns: tuple[str, ...]
    encode: Callable[[ImageResult], Iterable[bytes]]
    joint: str | None = None
    join: Callable[[Iterable[Part], Categories], Iterator[bytes]] | None = None
    needs: tuple[str, str] | None = None

    @property
    def names(self) -> list[str]:
        """Names of the files and folders in the folder of results."""
        folders = dict.fromkeys(pattern.partition("/")[0] for pattern in self.patterns)
        return [*folders, *([self.joint] if self.joint else [])]

    def paths(self, file_name: str, segments: Sequence[dict[str, Any]]) -> list[str]:
        """Return the paths of an image's files below the folder of results.

        Args:
            file_name: relative file name of the image.
            segments: its `segments_info` in the COCO JSON.
        """
        name, paths = _stem(file_name), []
        for pattern in self.patterns:
            if "{id}" in pattern:
                paths += [pattern.format(name=name, id=s["id"]) for s in segments if s["isthing"]]
            else:
                paths.append(pattern.format(name=name))
        return paths

    def earlier(self, out: Location, file_name: str) -> Iterator[Location]:
        """Yield the existing files of an image's single things, whose ids a new result may lack."""
        for folder, _, leaf in (pattern.rpartition("/") for pattern in self.patterns):
            if "{id}" in leaf:
                yield from (out / folder.format(name=_stem(file_name))).glob(leaf.format(id="*"))

    def files(self, item: ImageResult) -> Iterator[tuple[str, bytes]]:
        """Yield path and content of each file of an image."""
        segments = [segment.to_json() for segment in item.result.segments]
        yield from zip(self.paths(item.file_name, segments), self.encode(item), strict=True)


def _stem(file_name: str) -> str:
    return PurePath(file_name).with_suffix("").as_posix()
