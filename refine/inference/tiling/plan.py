"""Division of an image into overlapping windows, each of which answers for its core."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from refine.errors import RefineError

ALIGN = 64
"""Windows begin at multiples of this number of pixels of the network's input, so that the grids of all levels of
the pyramid, and of anchors, lie as they would in the whole image."""
OVERLAP = 4
"""Tile divided by this is the default overlap."""


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
                f"{name}: --mpp needs its resolution, which the file does not state, or with different "
                f"values for X and Y; give --scale"
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
    """Part of an image that is predicted at a time, in pixels of the image.

    Attributes:
        top, left, bottom, right: its border; bottom and right are exclusive.
        core: the same for the pixels that no other window answers for.
    """

    top: int
    left: int
    bottom: int
    right: int
    core: tuple[int, int, int, int]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)"""
        return self.bottom - self.top, self.right - self.left


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
    rows, columns = (_divide(length, tiling, scale) for length in size)
    return [
        Window(top, left, bottom, right, (core_top, core_left, core_bottom, core_right))
        for top, bottom, core_top, core_bottom in rows
        for left, right, core_left, core_right in columns
    ]


def _divide(length: int, tiling: Tiling, scale: float) -> list[tuple[int, int, int, int]]:
    """Return (begin, end, begin of the core, end of the core) of the windows along one axis, in pixels.

    As many windows as the overlap requires are spread evenly, so that none is small and all overlap as much as
    they can.
    """
    step = tiling.tile - tiling.least_overlap
    unit = ALIGN if step >= ALIGN else 1
    beyond = max(0, max(1, round(length * scale)) - tiling.tile)  # begin of the last window
    count = 1 + -(-beyond // (step // unit * unit))
    starts = [unit * -(-n * beyond // (unit * max(1, count - 1))) for n in range(count)]
    # At large scales both ends may be rounded to the same pixel; a window has at least one.
    begins = [min(length - 1, round(start / scale)) for start in starts]
    ends = [round((start + tiling.tile) / scale) for start in starts[:-1]]
    ends = [min(length, max(end, begin + 1)) for end, begin in zip(ends, begins, strict=False)] + [length]
    middles = [(begin + end) // 2 for end, begin in zip(ends[:-1], begins[1:], strict=True)]
    cores = pairwise([0, *middles, length])
    return [(begin, end, *core) for begin, end, core in zip(begins, ends, cores, strict=True)]
