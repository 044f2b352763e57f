"""Readers for the inputs of `refine fuse`: COCO instance results, and semantic maps as grey PNGs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from refine.errors import RefineError, shown
from refine.files import read_json
from refine.formats.panoptic_json import is_id
from refine.structures import VOID, Categories

if TYPE_CHECKING:
    from torch import Tensor


def read_results(path: str | Path, images: Container[int | str]) -> dict[int | str, list[dict[str, Any]]]:
    """Read a list of detections in COCO's results format and group it by image id.

    Args:
        path: JSON file.
        images: known image ids.

    Raises:
        RefineError: the file is not such a list, or an image id is unknown.
    """
    results = read_json(path)
    if not isinstance(results, list) or not all(isinstance(entry, dict) for entry in results):
        raise RefineError(f"{path}: expected a list of mappings; give COCO's results format")
    by_image: dict[int | str, list[dict[str, Any]]] = defaultdict(list)
    for n, entry in enumerate(results):
        image_id = entry.get("image_id")
        if not is_id(image_id) or image_id not in images:
            raise RefineError(f"{path}: entry {n}: image_id {shown(image_id)} is not in `images`; add it")
        by_image[image_id].append(entry)
    return by_image


def read_semantic(folder: str | Path, name: str, size: tuple[int, int], categories: Categories) -> Tensor:
    """Read a semantic PNG of category ids; 0 is void unless a category has the id 0.

    Args:
        folder: folder of the PNGs.
        name: relative file name of the image, with any suffix.
        size: expected (height, width) in pixels.
        categories: categories of the ids.

    Returns:
        Tensor[H, W] int32, contiguous class or `VOID`.

    Raises:
        RefineError: the PNG is missing, not grey or of another size, or an id is not in `categories`.
    """
    import torch

    path, ids = _read_grey(folder, name, size, 65535)
    lookup = np.full(65536, VOID - 1, np.int32)
    lookup[0] = VOID
    for category in categories:
        if category.id < len(lookup):
            lookup[category.id] = categories.index(category.id)
    labels = lookup[ids]
    if (labels < VOID).any():
        unknown = ids[labels < VOID][0]
        raise RefineError(f"{path}: has category id {unknown}, which is not in the categories; use 0 for void")
    return torch.from_numpy(labels)


def read_confidence(folder: str | Path, name: str, size: tuple[int, int]) -> Tensor:
    """Read confidences stored as 0-255: Tensor[H, W] float32, 0-1; arguments and errors as in `read_semantic`."""
    import torch

    _, values = _read_grey(folder, name, size, 255)
    return torch.from_numpy(values).float() / 255


def _read_grey(folder: str | Path, name: str, size: tuple[int, int], most: int) -> tuple[Path, np.ndarray]:
    from refine.formats.id_png import read_gray
    from refine.formats.png import png_size

    path = Path(folder, PurePath(name).with_suffix(".png"))
    height, width = png_size(path)
    if (height, width) != size:
        raise RefineError(f"{path}: expected {size[1]} × {size[0]} pixels, got {width} × {height}; resize it")
    values = read_gray(path)
    if values.max() > most:
        raise RefineError(f"{path}: expected values of at most {most}, got {values.max()}; rescale them")
    return path, values
