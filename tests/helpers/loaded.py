"""Reading of the drawn data sets."""

from typing import Any

import torch
from helpers.drawn_data import Files

from refine.data.coco_panoptic import CocoPanoptic
from refine.data.segments import SegmentMap
from refine.structures import VOID

CAR, CAT, GRASS, ROAD = range(4)
CLASSES = [
    [GRASS, GRASS, GRASS, GRASS, GRASS, VOID],
    [GRASS, CAT, CAT, GRASS, GRASS, VOID],
    [GRASS, CAT, CAT, CAR, CAR, VOID],
    [ROAD, ROAD, ROAD, CAR, CAR, ROAD],
]
"""The drawn map as class indices."""


def load(files: Files, **more: Any) -> CocoPanoptic:
    files.save()
    return CocoPanoptic(files.images, files.json, files.segments, **more)


def classes(segments: SegmentMap) -> list[list[int]]:
    labels = torch.cat([segments.labels, torch.tensor([VOID])])
    return labels[segments.index.long()].tolist()
