"""COCO's instance annotations: masks that may overlap (https://cocodataset.org/#format-data)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hotcoco import mask as rle
from torch import Tensor

from refine.errors import RefineError
from refine.files import read_json
from refine.formats.rle import compressed
from refine.structures import VOID


def _raise(error: RefineError) -> None:
    raise error


class InstanceFile:
    """Instance masks of the images of a data set, kept as run lengths in one string.

    Args:
        path: COCO instances JSON; segmentations are polygons or run lengths. Annotations of other images
            are left out, and so are those without a pixel.
        image_ids: images of the data set, in its order.
        sizes: their (height, width).
        labels: category id -> contiguous class; VOID leaves the annotation out.
        num_things: classes below it are things.
        on_error: is given every error below but that of an unreadable file; if it returns, the annotation
            is left out.

    Raises:
        RefineError: a field is missing, a category is unknown or stuff, a segmentation cannot be drawn, or
            no annotation is of these images.
    """

    def __init__(
        self,
        path: str | Path,
        image_ids: Sequence[int | str],
        sizes: Sequence[tuple[int, int]],
        labels: Mapping[int, int],
        num_things: int,
        on_error: Callable[[RefineError], None] = _raise,
    ) -> None:
        self.path = Path(path)
        content = read_json(path)
        if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
            raise RefineError(f"{path}: has no list `annotations`; give a COCO instances JSON")
        place = {image_id: n for n, image_id in enumerate(image_ids)}
        rows: list[tuple[int, int, bool, bytes]] = []
        known = False
        for n, annotation in enumerate(content["annotations"]):
            try:
                image = place.get(annotation["image_id"])
                if image is not None:
                    known = True
                    rows += self._row(annotation, image, sizes[image], labels, num_things)
            except KeyError as error:
                problem = f"has no `{error.args[0]}`; give a COCO instances JSON"
            except TypeError as error:
                problem = f"is not as COCO instances JSON has it ({error}); correct it"
            except RefineError as error:
                problem = str(error)
            else:
                continue
            on_error(RefineError(f"{path}: annotations[{n}]: {problem}"))
        if not known:
            on_error(RefineError(f"{path}: annotations: none is of an image of the data set; check the two files"))
        rows.sort(key=lambda row: row[0])
        images = np.array([row[0] for row in rows])
        self._first = np.searchsorted(images, np.arange(len(image_ids) + 1))
        self._labels = np.array([row[1] for row in rows], np.int16)
        self._crowd = np.array([row[2] for row in rows], bool)
        self._end = np.cumsum([0] + [len(row[3]) for row in rows])
        self._codes = b"".join(row[3] for row in rows)
        self._sizes = sizes

    @staticmethod
    def _row(
        annotation: Mapping[str, Any],
        image: int,
        size: tuple[int, int],
        labels: Mapping[int, int],
        num_things: int,
    ) -> list[tuple[int, int, bool, bytes]]:
        """(place of the image, label, iscrowd, run lengths) of an annotation that is wanted."""
        category = annotation["category_id"]
        segmentation, crowd = annotation["segmentation"], bool(annotation.get("iscrowd", 0))
        label = labels.get(category)
        if label is None:
            raise RefineError(f"category_id {category} is not among the panoptic categories; add it there")
        if not VOID <= label < num_things:
            raise RefineError(f"category_id {category} is stuff; instances are things")
        code = _encode(segmentation, size)
        return [(image, label, crowd, code["counts"])] if label != VOID and rle.area(code) else []

    def read(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Masks Tensor[M, H, W] bool, labels Tensor[M] int64, iscrowd Tensor[M] bool of an image."""
        part = range(self._first[index], self._first[index + 1])
        size = self._sizes[index]
        masks = torch.zeros(len(part), *size, dtype=torch.bool)
        for m, k in enumerate(part):
            counts = self._codes[self._end[k] : self._end[k + 1]]
            masks[m] = torch.from_numpy(np.ascontiguousarray(rle.decode({"size": list(size), "counts": counts})))
        rows = slice(part.start, part.stop)
        labels = torch.from_numpy(self._labels[rows].astype(np.int64))
        return masks, labels, torch.from_numpy(self._crowd[rows].copy())


def _encode(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Polygons or run lengths of any kind -> compressed run lengths."""
    try:
        if not segmentation:
            raise ValueError("it is empty")
        if isinstance(segmentation, list) and any(len(part) < 6 for part in segmentation):
            raise ValueError("a polygon needs three corners")
        return compressed(segmentation, size)
    except (ValueError, TypeError, KeyError) as error:
        raise RefineError(f"segmentation cannot be drawn ({error}); correct or drop it") from error
