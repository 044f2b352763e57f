"""Shapes for the files of annotation tools, and their masks by Pillow and pycocotools."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from helpers.converted import SIZE, draw_mask
from PIL import Image
from pycocotools import mask as rle

SQUARE = [[10, 10], [40, 10], [40, 40], [10, 40]]
TRIANGLE = [[50.5, 20.25], [75, 35], [50.5, 55]]
DISC = draw_mask("ellipse", 5, 42, 22, 58)
LEFT, TOP = 5, 42
SMALL = DISC[42:59, 5:23]
"""The disc without empty margins."""


def mask_of(*polygons: list[list[float]]) -> np.ndarray:
    """Return the union of polygons, lists of points (x, y), filled by pycocotools: [H, W] bool."""
    flat = [np.ravel(points).tolist() for points in polygons]
    return rle.decode(rle.merge(rle.frPyObjects(flat, *SIZE))) > 0


def png(values: np.ndarray) -> bytes:
    """Encode an image as PNG."""
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


def runs(mask: np.ndarray) -> list[int]:
    """Return the run lengths of 0 and 1 by turns, row by row, beginning with 0."""
    flat = mask.ravel().astype(int)
    ends = np.r_[np.flatnonzero(np.diff(flat)) + 1, flat.size]
    counts = np.diff(np.r_[0, ends]).tolist()
    return [0, *counts] if flat[0] else counts


def save(path: Path, content: Any) -> Path:
    """Write text, or what is not text as JSON, and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path
