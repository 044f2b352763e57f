"""Hand-made predictions with known numbers, and their explanations."""

from typing import get_args

import pytest
import torch

from refine.fusion import FusionConfig, Method
from refine.fusion.explain import explain
from refine.structures import Categories, Category, Instances, Prediction
from refine.structures.targets import mask_boxes

CATEGORIES = Categories(
    [
        Category(10, "disc", True, (220, 20, 60)),
        Category(11, "ring", True, (20, 120, 220)),
        Category(12, "haze", False, (90, 90, 90)),
        Category(13, "moss", False, (70, 130, 80)),
    ]
)
SIZE = (6, 16)
METHODS = list(get_args(Method))
CONFIG = FusionConfig(stuff_area=1)


def prediction(masks, scores, labels, sem_seg=None, confidence=None):
    """Boxes around the masks; moss wherever no map is given."""
    size = tuple(masks.shape[1:])
    return Prediction(
        Instances(size, mask_boxes(masks), torch.tensor(scores), torch.tensor(labels), masks=masks),
        torch.full(size, 3) if sem_seg is None else sem_seg,
        torch.full(size, 0.9) if confidence is None else confidence,
    )


def explanation_of(raw, methods=METHODS, config=CONFIG, occlusion=None, ranking=None, categories=CATEGORIES):
    return explain(raw, categories=categories, methods=methods, config=config, occlusion=occlusion, ranking=ranking)


def blank_image(size=SIZE):
    return torch.full((3, *size), 128, dtype=torch.uint8)


def overlapping():
    """Return instances by increasing score: one below the threshold, 1 × 8 pixels, 4 × 5 pixels, 4 × 5 pixels.

    Numbered by decreasing score, 1 and 2 share two columns of 4 pixels, 0.4 of each; 2 and 3 share one pixel, 0.05
    and 0.125 of them, which is too little for pairwise rules.
    """
    masks = torch.zeros(4, *SIZE, dtype=torch.bool)
    masks[0, :, 10:] = True
    masks[1, 3, 7:15] = True
    masks[2, :4, 3:8] = True
    masks[3, :4, :5] = True
    return prediction(masks, [0.2, 0.6, 0.8, 0.9], [0, 1, 0, 1])


def occlusion(instances, pairs):
    """Return O of 1 and 2, numbered by decreasing score: 2 lies in front."""
    assert pairs.tolist() == [[0, 1]]
    assert instances.scores.tolist() == pytest.approx([0.9, 0.8, 0.6])
    matrix = torch.full((3, 3), 0.5)
    matrix[0, 1], matrix[1, 0] = 0.1, 0.9
    return matrix


def ranking(instances):
    return torch.tensor([0.3, 0.2, 0.7])
