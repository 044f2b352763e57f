"""Three categories, and a map of two segments with its entries."""

import numpy as np

from refine.structures import Categories, Category

CATEGORIES = Categories(
    [Category(4, "cat", True, (0, 0, 0)), Category(2, "dog", True, (0, 0, 0)), Category(9, "sky", False, (0, 0, 0))]
)


def segments(*pairs, crowd=()):
    return [{"id": i, "category_id": c, "iscrowd": int(i in crowd)} for i, c in pairs]


MAP = np.array([[1, 1, 2, 2], [1, 1, 2, 2]])
GOOD = segments((1, 4), (2, 9))
