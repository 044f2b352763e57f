"""Division of an image into overlapping windows, each of which answers for its core."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise, product

from refine.data.resize import network_size
from refine.errors import RefineError

NO_LIMIT = 2**31
"""Long side in pixels that no image reaches."""
ALIGN = 64
"""Windows begin at multiples of this number of pixels of the network's input, so that the grids of all levels of
the pyramid, and of anchors, lie as they would in the whole image."""
OVERLAP = 4
"""Tile divided by this is the default overlap."""

Range = tuple[int, int]
"""(begin, end), exclusive."""
Rectangle = tuple[int, int, int, int]
"""(top, left, bottom, right); bottom and right are exclusive."""


@dataclass(frozen=True)
class Tiling:
    """How images are cut into tiles.

    Attributes:
        tile: side of a tile in pixels of the network's input.
        overlap: least overlap of neighbouring tiles in pixels of the network's input; None stands for a quarter of
            the tile. Objects up to this size are seen whole by a tile.
        scale: factor by which images are resized for the network.
        mpp: resolution to which images are resized for the network, in micrometres per pixel, instead of `scale`.

    Raises:
        RefineError: the tile is smaller than twice the overlap, or both scale and resolution are given.
    """

    tile: int = 1024
    overlap: int | None = None
    scale: float | None = None
    mpp: float | None = None

    def __post_init__(self) -> None:
        if self.tile < 2 * self.least_overlap:
            raise RefineError(
                f"--tile {self.tile}: expected at least twice the overlap of {self.least_overlap} pixels; give "
                f"--tile {2 * self.least_overlap} or --overlap {self.tile // 2}"
            )
        if self.scale is not None and self.mpp is not None:
            raise RefineError("--mpp: cannot be combined with --scale; give one of them")

    @property
    def least_overlap(self) -> int:
        """Least overlap of neighbouring tiles in pixels of the network's input."""
        return self.tile // OVERLAP if self.overlap is None else self.overlap

    def scale_for(self, mpp: float | None, name: str) -> float:
        """Return the factor by which an image is resized.

        Args:
            mpp: resolution of the image in micrometres per pixel, if it is known.
            name: name of the image for the message.

        Raises:
            RefineError: the resolution is needed but not known.
        """
        if self.mpp is None:
            return self.scale or 1.0
        if mpp is None:
            raise RefineError(
                f"{name}: --mpp needs the image's resolution, which the file does not state, or states with "
                f"different values for X and Y; give --scale"
            )
        return mpp / self.mpp


def check_scale(scale: float, size: tuple[int, int], name: str) -> None:
    """Raise RefineError if an image would be resized to less than 2 pixels on a side, unless it has only one.

    Args:
        scale: factor by which the image is resized.
        size: (height, width) of the image in pixels.
        name: name of the image for the message.
    """
    short = round(min(size) * scale)
    if short < min(2, *size):
        raise RefineError(
            f"{name}: at scale {scale:g}, {size[1]} × {size[0]} pixels become {round(size[1] * scale)} × "
            f"{round(size[0] * scale)}, expected at least 2 on a side; give a larger --scale, or check --mpp"
        )


@dataclass(frozen=True)
class Window:
    """Part of an image that is predicted at a time.

    Attributes:
        place: its border in pixels of the image.
        core: the same for the pixels that no other window answers for.
        resized: pixels of the resized image that the network sees of it.
    """

    place: Rectangle
    core: Rectangle
    resized: Rectangle

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels of the image."""
        return _size(self.place)

    @property
    def resized_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the resized image."""
        return _size(self.resized)


def size_at(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return the test size (short, long) at which an image of `size` is resized by `scale`."""
    return max(1, round(min(size) * scale)), NO_LIMIT


def resized_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return (height, width) of an image of `size` when it is resized by `scale`, as a whole image would be."""
    return network_size(size, *size_at(size, scale))


def plan(size: tuple[int, int], tiling: Tiling, scale: float) -> list[Window]:
    """Divide an image into windows, row by row, whose cores partition it.

    Args:
        size: (height, width) of the image in pixels.
        tiling: side and overlap of the tiles.
        scale: factor by which the image is resized for the network.

    Raises:
        RefineError: a tile is smaller than a pixel of the image.
    """
    if tiling.tile < scale:
        raise RefineError(
            f"--tile {tiling.tile}: at scale {scale:g} it is smaller than a pixel of the image; "
            "give a smaller --scale"
        )
    sides = zip(size, resized_size(size, scale), strict=True)
    rows, columns = (_divide(length, resized, tiling) for length, resized in sides)
    return [Window(*map(_rectangle, *pair)) for pair in product(rows, columns)]


def _divide(length: int, resized: int, tiling: Tiling) -> list[tuple[Range, Range, Range]]:
    """Return range, core and resized range of the windows along one axis; see `Window`.

    As many windows as the overlap requires are spread evenly, so that none is small and all overlap as much as
    they can. A window contains all pixels of the image of which its resized pixels show a part.

    Args:
        length, resized: length of the axis in pixels of the image, and of the resized image.
        tiling: side and overlap of the tiles.
    """
    step = tiling.tile - tiling.least_overlap
    unit = ALIGN if step >= ALIGN else 1
    beyond = max(0, resized - tiling.tile)  # begin of the last window
    count = 1 + -(-beyond // (step // unit * unit))
    begins = [unit * -(-n * beyond // (unit * max(1, count - 1))) for n in range(count)]
    shown = [(begin, begin + tiling.tile) for begin in begins[:-1]] + [(begins[-1], resized)]
    windows = [(begin * length // resized, -(-end * length // resized)) for begin, end in shown]
    middles = [(end + begin) // 2 for (_, end), (begin, _) in pairwise(windows)]
    return list(zip(windows, pairwise([0, *middles, length]), shown, strict=True))


def _size(rectangle: Rectangle) -> tuple[int, int]:
    top, left, bottom, right = rectangle
    return bottom - top, right - left


def _rectangle(rows: Range, columns: Range) -> Rectangle:
    return rows[0], columns[0], rows[1], columns[1]
