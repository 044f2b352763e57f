"""Resolution that TIFF files state, in micrometres per pixel."""

from __future__ import annotations

import math
import re
from pathlib import Path

from tifffile import TiffFile, TiffPageSeries

from refine.formats.containers import TIFF_MAGIC
from refine.formats.tiff import opened

COARSEST = 20.0
"""Resolution in micrometres per pixel above which a TIFF's resolution is that of a print or a screen (1270 dpi)."""
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
UNITS = {2: "inch", 3: "cm"}
"""Values of the tag ResolutionUnit."""


def stated_mpp(path: Path) -> float | None:
    """Return the resolution of an image file in micrometres per pixel, or None if it states none.

    It is read from the OME metadata, from ImageJ's, or from the resolution tags, unless that is one of prints.

    Raises:
        RefineError: a TIFF file is damaged.
        OSError: the file cannot be read.
    """
    with path.open("rb") as head:
        if not head.read(4).startswith(TIFF_MAGIC):
            return None
    with opened(path) as file:
        mpp = mpp_of(file, file.series[0])
    return mpp if mpp is not None and 0 < mpp < math.inf else None


def mpp_of(file: TiffFile, series: TiffPageSeries) -> float | None:
    """Return the resolution that an open TIFF file states for a series; see `stated_mpp`."""
    if file.is_ome and (size := re.search(r'PhysicalSizeX="([\d.eE+-]+)"', file.ome_metadata or "")):
        stated = re.search(r'PhysicalSizeXUnit="([^"]+)"', file.ome_metadata or "")
        factor = MICROMETRES.get(stated[1] if stated else "µm")
        return None if factor is None else float(size[1]) * factor
    resolution = series.keyframe.tags.valueof("XResolution")
    if not resolution or not all(resolution):
        return None
    unit = UNITS.get(int(series.keyframe.tags.valueof("ResolutionUnit", default=2)))
    if file.imagej_metadata is not None:
        unit = file.imagej_metadata.get("unit")
    if unit not in MICROMETRES:
        return None
    mpp: float = MICROMETRES[unit] * resolution[1] / resolution[0]
    return mpp if mpp <= COARSEST else None
