"""Cityscapes in its original layout: leftImg8bit/ and gtFine/ (https://www.cityscapes-dataset.com)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from refine.data.segments import SegmentMap
from refine.errors import RefineError
from refine.formats.id_png import read_gray
from refine.formats.images import read_image
from refine.formats.png import png_size
from refine.formats.runs import Runs
from refine.structures import VOID, Categories, Category

_IMAGE, _IDS = "_leftImg8bit.png", "_gtFine_instanceIds.png"
_STUFF = [
    (7, "road", (128, 64, 128), "flat"),
    (8, "sidewalk", (244, 35, 232), "flat"),
    (11, "building", (70, 70, 70), "construction"),
    (12, "wall", (102, 102, 156), "construction"),
    (13, "fence", (190, 153, 153), "construction"),
    (17, "pole", (153, 153, 153), "object"),
    (19, "traffic light", (250, 170, 30), "object"),
    (20, "traffic sign", (220, 220, 0), "object"),
    (21, "vegetation", (107, 142, 35), "nature"),
    (22, "terrain", (152, 251, 152), "nature"),
    (23, "sky", (70, 130, 180), "sky"),
]
_THINGS = [
    (24, "person", (220, 20, 60), "human"),
    (25, "rider", (255, 0, 0), "human"),
    (26, "car", (0, 0, 142), "vehicle"),
    (27, "truck", (0, 0, 70), "vehicle"),
    (28, "bus", (0, 60, 100), "vehicle"),
    (31, "train", (0, 80, 100), "vehicle"),
    (32, "motorcycle", (0, 0, 230), "vehicle"),
    (33, "bicycle", (119, 11, 32), "vehicle"),
]
CATEGORIES = Categories(
    [Category(n, name, False, color, group) for n, name, color, group in _STUFF]
    + [Category(n, name, True, color, group) for n, name, color, group in _THINGS]
)
"""The 19 classes of the benchmark; category ids are Cityscapes label ids."""
NUM_LABELS = 34
"""Number of label ids (0-33); those not in `CATEGORIES` are ignored by the benchmark and become void."""
_WITH_INSTANCES = range(24, 34)
_INDEX = np.array([CATEGORIES.index(n) if n in CATEGORIES else VOID for n in range(NUM_LABELS)])


class Cityscapes:
    """Frames of one split, with the interface of `CocoPanoptic`.

    Pixels of an instance have the value 1000 · label id + instance number. Pixels of a thing class without an
    instance number are an unseparated group, which becomes a crowd. Frames without annotation are skipped.

    Args:
        root: folder with leftImg8bit/SPLIT/CITY/ and gtFine/SPLIT/CITY/.
        split: "train", "val" or "test".

    Raises:
        RefineError: there is no annotated frame, or the header of a PNG is damaged.
    """

    def __init__(self, root: str | Path, split: str) -> None:
        self.root, self.split = Path(root), split
        self.categories = CATEGORIES
        self._frames = list_frames(root, split)
        self.sizes = [png_size(ids) for _, ids in self._frames]

    def __len__(self) -> int:
        return len(self._frames)

    def name(self, index: int) -> tuple[int | str, str]:
        """Return (image id, file name) of a frame; as in the official tools, the id is CITY_SEQUENCE_FRAME."""
        name = self._frames[index][0].name
        return name.removesuffix(_IMAGE), name

    def __getitem__(self, index: int) -> tuple[Tensor, SegmentMap]:
        """Return the image, Tensor[3, H, W] uint8 RGB, and its segment map.

        Raises:
            RefineError: a file is missing or damaged, sizes differ, or a pixel has no Cityscapes label.
        """
        image_file, ids_file = self._frames[index]
        values = read_gray(ids_file)
        image = read_image(image_file)
        if tuple(image.shape[1:]) != values.shape:
            raise RefineError(
                f"{image_file}: expected {values.shape[1]} × {values.shape[0]} pixels as in {ids_file}, got "
                f"{image.shape[2]} × {image.shape[1]}; copy both again"
            )
        runs = Runs.from_map(values)
        found = np.unique(runs.ids)
        unknown = unknown_values(found)
        if unknown.size:
            raise RefineError(f"{ids_file}: value {unknown[0]} is not a Cityscapes label; copy the file again")
        index_of, crowd = classify(found)
        kept = np.flatnonzero(index_of != VOID)
        segment = runs.find(found[kept])
        return image, SegmentMap(
            torch.from_numpy(runs.spread(segment.astype(np.int32))),
            torch.from_numpy(index_of[kept]),
            torch.from_numpy(crowd[kept]),
        )


def list_frames(root: str | Path, split: str) -> list[tuple[Path, Path]]:
    """Return (image, instanceIds file) of each annotated frame of a split, sorted by city and name.

    Raises:
        RefineError: there is no annotated frame.
    """
    folder = Path(root) / "gtFine" / split
    files = sorted(folder.glob(f"*/*{_IDS}"))
    if not files:
        raise RefineError(f"{folder}: contains no CITY/*{_IDS}; unpack gtFine, or give another root or split")
    images = Path(root) / "leftImg8bit" / split
    return [(images / f.parent.name / (f.name.removesuffix(_IDS) + _IMAGE), f) for f in files]


def unannotated(root: str | Path, split: str) -> list[Path]:
    """Return the images of a split without an instanceIds file, which `Cityscapes` skips."""
    known = {image for image, _ in list_frames(root, split)}
    return [p for p in sorted((Path(root) / "leftImg8bit" / split).glob(f"*/*{_IMAGE}")) if p not in known]


def unknown_values(values: np.ndarray) -> np.ndarray:
    """Return the values of an instanceIds file that Cityscapes does not define."""
    numbered = np.isin(values // 1000, _WITH_INSTANCES)
    return values[~((values >= 0) & (values < NUM_LABELS) | numbered)]


def classify(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Convert defined values of an instanceIds file to class indices or VOID, [V] int64, and iscrowd, [V] bool."""
    index = _INDEX[np.where(values < 1000, values, values // 1000)]
    return index, (values < 1000) & (index >= 0) & (index < CATEGORIES.num_things)
