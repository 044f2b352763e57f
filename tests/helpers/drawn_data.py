"""Tiny hand-made data sets on disk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from refine.files import write_json
from refine.structures import id_to_rgb

CATEGORIES = [
    {"id": 17, "name": "cat", "isthing": 1, "supercategory": "animal"},
    {"id": 3, "name": "car", "isthing": 1, "supercategory": "vehicle"},
    {"id": 200, "name": "road", "isthing": 0, "supercategory": "ground"},
    {"id": 105, "name": "grass", "isthing": 0, "supercategory": "ground"},
]
"""Contiguous indices: car 0, cat 1, grass 2, road 3."""
IDS = np.array(
    [
        [7, 7, 7, 7, 7, 0],
        [7, 300, 300, 7, 7, 0],
        [7, 300, 300, 70000, 70000, 0],
        [9, 9, 9, 70000, 70000, 9],
    ]
)
"""Grass 7, road 9, cat 300 = 44 + 1·256, car 70000 = 112 + 17·256 + 1·65536; the right edge is void."""
SEGMENTS = [
    {"id": 9, "category_id": 200, "area": 4, "bbox": [0, 3, 6, 1], "iscrowd": 0},
    {"id": 300, "category_id": 17, "area": 4, "bbox": [1, 1, 2, 2], "iscrowd": 0},
    {"id": 7, "category_id": 105, "area": 9, "bbox": [0, 0, 5, 3], "iscrowd": 0},
    {"id": 70000, "category_id": 3, "area": 4, "bbox": [3, 2, 2, 2], "iscrowd": 0},
]


@dataclass
class Files:
    """Where a drawn data set is; `content` is what the JSON says, `save` writes it again after a change."""

    folder: Path
    content: dict[str, Any]

    @property
    def images(self) -> Path:
        return self.folder / "images"

    @property
    def segments(self) -> Path:
        return self.folder / "segments"

    @property
    def json(self) -> Path:
        return self.folder / "panoptic.json"

    def save(self) -> None:
        write_json(self.json, self.content)

    def paint(self, index: int, ids: np.ndarray) -> None:
        """Write the id-PNG of an image."""
        name = self.content["annotations"][index]["file_name"]
        Image.fromarray(id_to_rgb(ids)).save(self.segments / name)


def write_coco(
    folder: Path,
    maps: Sequence[np.ndarray] = (IDS,),
    segments: Sequence[Sequence[Mapping[str, Any]]] = (SEGMENTS,),
    categories: Sequence[Mapping[str, Any]] = CATEGORIES,
) -> Files:
    """Write images whose red and green channels encode row and column, with id-PNGs and a JSON."""
    images = [
        {"id": 10 + n, "file_name": f"{n}.png", "height": m.shape[0], "width": m.shape[1]}
        for n, m in enumerate(maps)
    ]
    annotations = [
        {"image_id": 10 + n, "file_name": f"{n}_ids.png", "segments_info": [dict(s) for s in infos]}
        for n, infos in enumerate(segments)
    ]
    categories = [dict(category) for category in categories]
    files = Files(folder, {"images": images, "annotations": annotations, "categories": categories})
    for sub in (files.images, files.segments):
        sub.mkdir(parents=True)
    for n, ids in enumerate(maps):
        rows, columns = np.indices(ids.shape)
        pixels = np.stack([10 * rows, 10 * columns, np.full(ids.shape, n)], -1).astype(np.uint8)
        Image.fromarray(pixels).save(files.images / f"{n}.png")
        files.paint(n, ids)
    files.save()
    return files


def write_cityscapes(root: Path, values: np.ndarray, name: str = "ulm_000000_000001", split: str = "val") -> Path:
    """Write one frame in Cityscapes' raw layout; return the path of its instanceIds file."""
    city = name.split("_")[0]
    image = root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png"
    ids = root / "gtFine" / split / city / f"{name}_gtFine_instanceIds.png"
    for path in (image, ids):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*values.shape, 3), (1, 2, 3), np.uint8)).save(image)
    cv2.imwrite(str(ids), values.astype(np.uint16))
    return ids
