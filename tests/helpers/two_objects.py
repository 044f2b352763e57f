"""Ground truth of two painted objects, and predictions of boxes for it."""

import torch

from refine.structures import Categories, Category, Instances, Prediction, Targets

SIZE = (40, 40)
CATEGORIES = Categories([Category(n, name, isthing=n < 3) for n, name in ((1, "a"), (2, "b"), (3, "ground"))])


class Painted:
    """Truth of two objects, the second in front of the first, on ground."""

    labels = torch.tensor([0, 1, 2])
    index = torch.full(SIZE, 2, dtype=torch.int32)
    index[:24, :24], index[12:36, 12:36] = 0, 1

    def targets(self, num_things, *_):
        return Targets.from_panoptic(self.index, self.labels, torch.zeros(3, dtype=torch.bool), num_things)


def make_prediction(boxes, labels, scores) -> Prediction:
    boxes = torch.tensor(boxes, dtype=torch.float32)
    masks = torch.ones(len(boxes), 28, 28)
    instances = Instances(SIZE, boxes, torch.tensor(scores), torch.tensor(labels), roi_masks=masks)
    return Prediction(instances, torch.full(SIZE, 2), torch.ones(SIZE))


BACK, FRONT = ([0.0, 0, 24, 24], 0), ([12.0, 12, 36, 36], 1)
