"""COCO instance annotations, whose masks may overlap (https://cocodataset.org/#format-data)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hotcoco import mask as rle
from torch import Tensor

from refine.errors import RefineError, shown
from refine.files import read_json
from refine.formats.panoptic_json import ImageEntry, OnError, differing_names, is_id
from refine.formats.rle import compressed
from refine.structures import VOID, Category


class InstanceFile:
    """Instance masks of the images of a data set, stored as run lengths in one byte string.

    Args:
        path: COCO instances JSON; segmentations are polygons or run lengths. Annotations of other images
            and annotations without a pixel are skipped.
        images: image id -> entry of the panoptic JSON, in the order of the data set. It is an error if the two
            files give one id different file names. Annotations of images without a size are skipped.
        categories: categories of the panoptic JSON; it is an error if the files give one id different names.
        labels: category id -> contiguous class; annotations mapped to `VOID` are skipped.
        num_things: number of thing classes; classes below it are things.
        on_error: called for each invalid entry, which is then skipped. None raises.
        content: parsed content of the file, or None to read it.

    Attributes:
        empty: number of annotations of these images that are skipped because they have no pixel.

    Raises:
        RefineError: a field is missing, a category is unknown or stuff, a segmentation is invalid, the files
            give an id different names, or no annotation belongs to these images.
    """

    def __init__(
        self,
        path: str | Path,
        images: Mapping[int | str, ImageEntry],
        categories: Iterable[Category],
        labels: Mapping[int, int],
        num_things: int,
        on_error: OnError | None = None,
        content: Any = None,
    ) -> None:
        self.path = Path(path)
        self.empty = 0
        self._fault = on_error or self._raise
        content = read_json(path) if content is None else content
        if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
            raise RefineError(f"{path}: has no list `annotations`; give a COCO instances JSON")
        self._check_names(content, images, categories)
        index = {image_id: n for n, image_id in enumerate(images)}
        self._sizes = [entry.size for entry in images.values()]
        rows: list[tuple[int, int, bool, bytes]] = []
        known = False
        for n, annotation in enumerate(content["annotations"]):
            try:
                image_id = annotation["image_id"]
                if not is_id(image_id):
                    raise RefineError(f"image_id is {shown(image_id)}; expected an integer or a string")
                if image_id in index:
                    known = True
                    rows += self._row(annotation, index[image_id], labels, num_things)
            except KeyError as error:
                problem = f"has no `{error.args[0]}`; give a COCO instances JSON"
            except TypeError as error:
                problem = f"is not a COCO instance annotation ({error}); correct it"
            except RefineError as error:
                problem = str(error)
            else:
                continue
            self._fault("instance", f"annotations[{n}]: {problem}")
        if not known:
            self._fault("instance", "annotations: none belongs to an image of the data set; check both files")
        rows.sort(key=lambda row: row[0])
        self._first = np.searchsorted(np.array([row[0] for row in rows]), np.arange(len(images) + 1))
        self._labels = np.array([row[1] for row in rows], np.int32)
        self._crowd = np.array([row[2] for row in rows], bool)
        self._end = np.cumsum([0] + [len(row[3]) for row in rows])
        self._codes = b"".join(row[3] for row in rows)

    def _raise(self, kind: str, message: str) -> None:
        raise RefineError(f"{self.path}: {message}")

    def _check_names(
        self, content: Mapping[str, Any], images: Mapping[int | str, ImageEntry], categories: Iterable[Category]
    ) -> None:
        for field, key in (("images", "file_name"), ("categories", "name")):
            entries = content.get(field)
            given: dict[int | str, str] = {}
            place: dict[int | str, int] = {}
            for n, entry in enumerate(entries if isinstance(entries, list) else []):
                number, name = (entry.get("id"), entry.get(key)) if isinstance(entry, dict) else (None, None)
                if is_id(number) and name is not None:
                    given[number], place[number] = str(name), n
            if field == "images":
                differing = differing_names({i: image.file_name for i, image in images.items()}, given)
            else:
                names: dict[int | str, str] = {category.id: category.name for category in categories}
                differing = ((i, name, names[i]) for i, name in given.items() if names.get(i, name) != name)
            for number, name, other in differing:
                self._fault(
                    "instance",
                    f"{field}[{place[number]}]: id {number} is {shown(name)}, but {shown(other)} in the panoptic "
                    f"JSON; use the same ids in both files",
                )

    def _row(
        self, annotation: Mapping[str, Any], image: int, labels: Mapping[int, int], num_things: int
    ) -> list[tuple[int, int, bool, bytes]]:
        """Return [(image index, label, iscrowd, run lengths)] of an annotation, or [] if it is skipped."""
        category, crowd = annotation["category_id"], annotation.get("iscrowd", 0)
        segmentation, size = annotation["segmentation"], self._sizes[image]
        label = labels.get(category) if type(category) is int else None
        if label is None:
            raise RefineError(f"category_id {shown(category)} is not in the panoptic categories; add it there")
        if not VOID <= label < num_things:
            raise RefineError(f"category_id {category} is stuff; instances are things")
        if crowd not in (0, 1):
            raise RefineError(f"iscrowd is {shown(crowd)}; expected 0 or 1")
        if size is None:
            return []
        code = _encode(segmentation, size)
        if label == VOID:
            return []
        if not rle.area(code):
            self.empty += 1
            return []
        return [(image, label, bool(crowd), code["counts"])]

    def codes(self, index: int) -> Iterator[tuple[int, bool, dict[str, Any]]]:
        """Yield (label, iscrowd, compressed run lengths) of each instance of an image.

        Args:
            index: index of the image in `images`; its size must be known.
        """
        size = self._sizes[index]
        assert size is not None, "the image has no size"
        for k in range(self._first[index], self._first[index + 1]):
            counts = self._codes[self._end[k] : self._end[k + 1]]
            yield int(self._labels[k]), bool(self._crowd[k]), {"size": list(size), "counts": counts}

    def read(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return masks Tensor[M, H, W] bool, labels Tensor[M] int64, iscrowd Tensor[M] bool of an image.

        Args:
            index: index of the image in `images`; its size must be known.
        """
        size = self._sizes[index]
        assert size is not None, "the image has no size"
        found = list(self.codes(index))
        masks = torch.zeros(len(found), *size, dtype=torch.bool)
        for m, (_, _, code) in enumerate(found):
            masks[m] = torch.from_numpy(np.ascontiguousarray(rle.decode(code)))
        labels = torch.tensor([label for label, _, _ in found], dtype=torch.int64)
        return masks, labels, torch.tensor([crowd for _, crowd, _ in found], dtype=torch.bool)


def _encode(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Convert polygons or run lengths of any kind to compressed run lengths."""
    try:
        return compressed(segmentation, size)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise RefineError(f"segmentation is invalid ({error}); correct or drop it") from error
