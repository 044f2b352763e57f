"""Resolution that TIFF files state, in micrometres per pixel."""

from __future__ import annotations

import math
import re
from html import unescape
from pathlib import Path

from tifffile import TiffFile, TiffPageSeries

from refine.formats.containers import TIFF_MAGIC
from refine.formats.tiff import find_page, opened

COARSEST = 20.0
"""Resolution in micrometres per pixel above which a TIFF's resolution is that of a print or a screen (1270 dpi)."""
SQUARE = 0.01
"""Largest relative difference between width and height of a pixel that counts as square."""
MICROMETRES = {
    "nm": 1e-3,
    "µm": 1.0,
    "μm": 1.0,  # the Greek letter
    "um": 1.0,
    "micron": 1.0,
    "\\u00B5m": 1.0,
    "mm": 1e3,
    "cm": 1e4,
    "inch": 25400.0,
}
UNITS = {2: "inch", 3: "cm", 4: "mm", 5: "µm"}
"""Values of the tag ResolutionUnit; 4 and 5 are not in the standard, but tifffile writes them."""


def stated_mpp(path: Path, page: int | None = None) -> float | None:
    """Return the resolution of an image file in micrometres per pixel, or None if it states none for square pixels.

    It is read from the OME metadata, from ImageJ's, or from the resolution tags, unless that is one of prints.

    Args:
        path: path of an image file.
        page: number, from 1, of the page of a TIFF; None stands for the first.

    Raises:
        RefineError: a TIFF file is damaged, or has no such page.
        OSError: the file cannot be read.
    """
    with path.open("rb") as head:
        if not head.read(4).startswith(TIFF_MAGIC):
            return None
    with opened(path) as file:
        return mpp_of(file, file.series[0] if page is None else find_page(file, path, page)[0])


def mpp_of(file: TiffFile, series: TiffPageSeries) -> float | None:
    """Return the resolution that an open TIFF file states for a series; see `stated_mpp`."""
    ome = (file.ome_metadata or "") if file.is_ome else ""
    own = re.findall(r"<(?:\w+:)?Pixels\b[^>]*>", ome)[file.series.index(series) :]  # of each series, in order
    ome = own[0] if own else ome
    if (size := _ome_size(ome, "X")) is not None:
        return square_mpp(size, _ome_size(ome, "Y"))
    mpp = square_mpp(_tag_size(file, series, "X"), _tag_size(file, series, "Y"))
    return mpp if mpp is not None and mpp <= COARSEST else None


def square_mpp(x: float | None, y: float | None) -> float | None:
    """Return the resolution of square pixels, or None if it is unknown or the pixels are not square.

    Args:
        x: width of a pixel in micrometres, if it is stated.
        y: height of a pixel in micrometres; None stands for that of a square pixel.
    """
    if x is None or not 0 < x < math.inf:
        return None
    return x if y is None or math.isclose(x, y, rel_tol=SQUARE) else None


def _ome_size(ome: str, axis: str) -> float | None:
    """Return the size of a pixel along an axis in OME metadata, in micrometres; NaN if the unit is unknown."""
    size = re.search(rf'PhysicalSize{axis}="([\d.eE+-]+)"', ome)
    unit = re.search(rf'PhysicalSize{axis}Unit="([^"]+)"', ome)
    return float(size[1]) * MICROMETRES.get(unescape(unit[1]) if unit else "µm", math.nan) if size else None


def _tag_size(file: TiffFile, series: TiffPageSeries, axis: str) -> float | None:
    """Return the size of a pixel along an axis in the resolution tags, in micrometres, or None."""
    resolution = series.keyframe.tags.valueof(f"{axis}Resolution")
    if not resolution or not all(resolution):
        return None
    unit = UNITS.get(int(series.keyframe.tags.valueof("ResolutionUnit", default=2)))
    if file.imagej_metadata is not None:
        unit = file.imagej_metadata.get("unit")
    if unit not in MICROMETRES:
        return None
    mpp: float = MICROMETRES[unit] * resolution[1] / resolution[0]
    return mpp
