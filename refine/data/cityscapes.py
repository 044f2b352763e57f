"""Cityscapes as it is downloaded: leftImg8bit/ and gtFine/ (https://www.cityscapes-dataset.com)."""

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
"""The 19 classes of the benchmark; ids are Cityscapes' label ids."""
NUM_LABELS = 34
"""Label ids are 0-33; those not in `CATEGORIES` are ignored by the benchmark: void."""
_WITH_INSTANCES = range(24, 34)
_INDEX = np.array([CATEGORIES.index(n) if n in CATEGORIES else VOID for n in range(NUM_LABELS)])


class Cityscapes:
    """Frames of one split, with the interface of `CocoPanoptic`.

    Pixels of an instance are 1000 times the label id plus a number; of a thing class without a number they
    are a group that nobody has taken apart: a crowd. Frames without annotation are left out.

    Args:
        root: folder with leftImg8bit/SPLIT/CITY/ and gtFine/SPLIT/CITY/.
        split: "train", "val" or "test".

    Raises:
        RefineError: no annotated frame, or one of the PNGs has no head to take the size from.
    """

    def __init__(self, root: str | Path, split: str) -> None:
        self.root, self.split = Path(root), split
        self.categories = CATEGORIES
        self._frames = list_frames(root, split)
        self.sizes = [png_size(ids) for _, ids in self._frames]

    def __len__(self) -> int:
        return len(self._frames)

    def name(self, index: int) -> tuple[int | str, str]:
        """(city, sequence and frame: the image id of the official tools; file name) of a frame."""
        name = self._frames[index][0].name
        return name.removesuffix(_IMAGE), name

    def __getitem__(self, index: int) -> tuple[Tensor, SegmentMap]:
        """The frame, Tensor[3, H, W] uint8 RGB, and its segment map.

        Raises:
            RefineError: a file is missing or damaged, sizes differ, or a pixel has no Cityscapes label.
        """
        image_file, ids_file = self._frames[index]
        values = read_gray(ids_file)
        image = read_image(image_file)
        if tuple(image.shape[1:]) != values.shape:
            raise RefineError(
                f"{image_file}: {image.shape[2]} × {image.shape[1]} pixels, but {ids_file} has "
                f"{values.shape[1]} × {values.shape[0]}; copy both again"
            )
        runs = Runs.from_map(values)
        found = np.unique(runs.ids)
        unknown = unknown_values(found)
        if unknown.size:
            raise RefineError(f"{ids_file}: value {unknown[0]} is no Cityscapes label; copy the file again")
        index_of, crowd = classify(found)
        kept = np.flatnonzero(index_of != VOID)
        place = runs.find(found[kept])
        return image, SegmentMap(
            torch.from_numpy(runs.spread(place.astype(np.int32))),
            torch.from_numpy(index_of[kept]),
            torch.from_numpy(crowd[kept]),
        )


def list_frames(root: str | Path, split: str) -> list[tuple[Path, Path]]:
    """(image, instanceIds file) of each annotated frame of a split, by city and name.

    Raises:
        RefineError: there is none.
    """
    folder = Path(root) / "gtFine" / split
    files = sorted(folder.glob(f"*/*{_IDS}"))
    if not files:
        raise RefineError(f"{folder}: no CITY/*{_IDS} there; unpack gtFine, or name another root or split")
    pictures = Path(root) / "leftImg8bit" / split
    return [(pictures / f.parent.name / (f.name.removesuffix(_IDS) + _IMAGE), f) for f in files]


def unannotated(root: str | Path, split: str) -> list[Path]:
    """Images of a split without an instanceIds file, which `Cityscapes` leaves out."""
    known = {picture for picture, _ in list_frames(root, split)}
    return [p for p in sorted((Path(root) / "leftImg8bit" / split).glob(f"*/*{_IMAGE}")) if p not in known]


def unknown_values(values: np.ndarray) -> np.ndarray:
    """Those of the values of an instanceIds file that Cityscapes does not define."""
    numbered = np.isin(values // 1000, _WITH_INSTANCES)
    return values[~((values >= 0) & (values < NUM_LABELS) | numbered)]


def classify(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values of an instanceIds file, all defined -> class index [V] int64 or VOID, iscrowd [V] bool."""
    index = _INDEX[np.where(values < 1000, values, values // 1000)]
    return index, (values < 1000) & (index >= 0) & (index < CATEGORIES.num_things)
