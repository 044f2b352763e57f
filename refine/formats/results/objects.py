"""Table of segments (CSV): class, score, position, size, shape and mean values."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from refine.errors import missing_extra
from refine.formats.results.saver import ImageResult, Part

if TYPE_CHECKING:
    from refine.structures import Categories

MEASURED = ("label", "centroid", "perimeter", "eccentricity", "solidity", "intensity_mean")
"""Properties that scikit-image measures."""
COLUMNS = (
    "image",
    "id",
    "class",
    "isthing",
    "score",
    "area",
    "x",
    "y",
    "box_x",
    "box_y",
    "box_width",
    "box_height",
    "perimeter",
    "eccentricity",
    "solidity",
    "mean_1",
    "mean_2",
    "mean_3",
    "um_per_px",
    "area_um2",
    "x_um",
    "y_um",
    "perimeter_um",
)
"""Columns of the table. x and y are the centroid from the image's top left corner (the first pixel's centre is at
0.5). Lengths are in pixels, and again in micrometres if the scale is known. Means are of the stored values of up to
three channels; grey images have one."""


def encode(item: ImageResult) -> Iterator[bytes]:
    """Yield the rows of one image: a list of mappings from column to value, without the image's name."""
    yield json.dumps(list(_rows(item)), allow_nan=False).encode()


def _rows(item: ImageResult) -> Iterator[dict[str, Any]]:
    try:
        from skimage.measure import regionprops_table
    except ImportError as error:
        raise missing_extra("the table of objects needs scikit-image", "measure") from error
    if not item.result.segments:
        return
    table = regionprops_table(item.ids, item.channels, properties=MEASURED)
    row_of = {int(label): n for n, label in enumerate(table["label"])}
    for segment in item.result.segments:
        values = {name: float(column[row_of[segment.id]]) for name, column in table.items()}
        x, y = values["centroid-1"] + 0.5, values["centroid-0"] + 0.5
        row = {
            "id": segment.id,
            "class": item.result.name(segment),
            "isthing": int(segment.isthing),
            "score": segment.score,
            "area": segment.area,
            "x": x,
            "y": y,
            "perimeter": values["perimeter"],
            "eccentricity": values["eccentricity"],
            "solidity": values["solidity"],
        }
        row |= dict(zip(("box_x", "box_y", "box_width", "box_height"), segment.bbox, strict=True))
        row |= {f"mean_{n + 1}": values[f"intensity_mean-{n}"] for n in range(item.channels.shape[2])}
        if (mpp := item.resolution) is not None:
            row |= {"um_per_px": mpp, "area_um2": segment.area * mpp**2}
            row |= {"x_um": x * mpp, "y_um": y * mpp, "perimeter_um": values["perimeter"] * mpp}
        yield {name: _rounded(value) for name, value in row.items()}


def _rounded(value: Any) -> Any:
    """Return a float with ten significant digits; None for one that is not finite, which an empty cell shows."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.10g}") if np.isfinite(value) else None


def join(parts: Iterable[Part], categories: Categories) -> Iterator[bytes]:
    """Yield the table of all images as CSV; unknown values are empty cells."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for image, rows in parts:
        writer.writerows({"image": image["file_name"]} | row for row in rows)
        yield text.getvalue().encode()
        text.seek(0)
        text.truncate()
    yield text.getvalue().encode()
