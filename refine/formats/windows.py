"""Images of any size, read window by window."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from torch import Tensor

from refine.errors import RefineError, missing_extra
from refine.formats.image_like import ImageLike, to_tensor
from refine.formats.image_list import SLIDES
from refine.formats.images import from_pil, is_tiff, read_image, stored_size
from refine.formats.raw import ImageOptions

WHOLE = 1 << 24
"""Number of pixels up to which an image is decoded whole."""


class ImageWindows(Protocol):
    """Image of which any part can be read.

    Attributes:
        size: (height, width) in pixels.
        mpp: resolution in micrometres per pixel, or None if it is not known.
    """

    @property
    def size(self) -> tuple[int, int]: ...

    @property
    def mpp(self) -> float | None: ...

    def read(self, top: int, left: int, bottom: int, right: int) -> Tensor:
        """Read the pixels of a rectangle inside the image: Tensor[3, bottom - top, right - left] uint8 RGB."""
        ...


class TensorWindows:
    """Windows of an image in memory, Tensor[3, H, W] uint8 RGB."""

    def __init__(self, image: Tensor, mpp: float | None = None) -> None:
        self._image, self.mpp = image, mpp
        self.size = (int(image.shape[1]), int(image.shape[2]))

    def read(self, top: int, left: int, bottom: int, right: int) -> Tensor:
        return self._image[:, top:bottom, left:right]


class SlideWindows:
    """Windows of a slide at its full resolution, read by OpenSlide; what was not scanned is white.

    Args:
        path: path of a file in a format of `SLIDES`.

    Raises:
        RefineError: OpenSlide is not installed, or cannot read the file.
    """

    def __init__(self, path: Path) -> None:
        from refine.formats.resolution import square_mpp

        try:
            import openslide
        except ImportError as error:
            raise missing_extra(f"{path}: slides need openslide-python", "slides") from error
        self._path, self._failure = path, openslide.OpenSlideError
        try:
            self._slide = openslide.OpenSlide(path)
        except (OSError, openslide.OpenSlideError) as error:
            raise RefineError(
                f"{path}: cannot be read by OpenSlide ({error}); check the path and the file"
            ) from error
        width, height = self._slide.dimensions
        self.size = (height, width)
        sizes = [self._slide.properties.get(f"openslide.mpp-{axis}") for axis in "xy"]
        x, y = (None if size is None else float(size) for size in sizes)
        self.mpp = square_mpp(x, y)

    def read(self, top: int, left: int, bottom: int, right: int) -> Tensor:
        try:
            region = self._slide.read_region((left, top), 0, (right - left, bottom - top))
        except self._failure as error:
            raise RefineError(f"{self._path}: is damaged ({error}); copy or export it again") from error
        return from_pil(region)


def open_windows(
    path: str | Path, options: ImageOptions | None = None, *, notify: Callable[[str], None] | None = None
) -> ImageWindows:
    """Open an image file to read windows of it.

    Slides and large TIFF files are read from the file. Other images are decoded whole.

    Args:
        path: path of an image file.
        options, notify: as for `read_image`.

    Raises:
        RefineError: the file cannot be read, or a package that its format needs is missing.
    """
    path, options = Path(path), options or ImageOptions()
    if path.suffix.lower() in SLIDES:
        if options.channel is not None or (options.page or 1) > 1:
            raise RefineError(f"{path}: a slide has one page, in colour; leave out --page and --channel")
        return SlideWindows(path)
    height, width = stored_size(path, options)
    mpp = None
    if is_tiff(path):
        from refine.formats.resolution import stated_mpp
        from refine.formats.tiff_windows import TiffWindows

        if height * width > WHOLE:
            return TiffWindows(path, options, notify)
        mpp = stated_mpp(path, options.page)
    return TensorWindows(read_image(path, options=options, notify=notify), mpp)


def open_image(image: ImageLike) -> ImageWindows:
    """Open an image of any type that `Predictor` accepts to read windows of it; errors as in `to_tensor`."""
    return open_windows(image) if isinstance(image, str | Path) else TensorWindows(to_tensor(image))
