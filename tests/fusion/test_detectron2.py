"""The heuristic against what detectron2 itself makes of the same predictions."""

import numpy as np
import pytest
import torch

from refine.fusion import fuse
from refine.structures import VOID, Categories, Category, Instances


@pytest.mark.parametrize("view", ["same_size", "resized"])
@pytest.mark.parametrize("model", ["panoptic_fpn_R_50", "panoptic_fpn_R_50_dconv_cascade_gn"])
def test_detectron2s_own_output_to_the_pixel(shared_dir, model, view):
    path = shared_dir / "fixtures/detectron2" / model / "reference.pt"
    theirs = torch.load(path, weights_only=True)[view]
    size, found = tuple(theirs["output_size"]), theirs["instances"]
    masks = np.unpackbits(found["pred_masks_packed"].numpy(), axis=1)[:, : size[0] * size[1]]
    masks = torch.from_numpy(masks).view(-1, *size).bool()
    categories = Categories([Category(n + 1, f"{n}", n < 80, (0, 0, 0)) for n in range(133)])
    sem_seg = theirs["sem_seg"].long()
    result = fuse(
        Instances(size, found["pred_boxes"], found["scores"], found["pred_classes"], masks=masks),
        torch.where(sem_seg > 0, sem_seg + 79, VOID),
        categories=categories,
        method="heuristic",
    )
    assert torch.equal(result.segment_ids, theirs["panoptic_seg"])
    ours = [(s.isthing, s.category_id - 1, s.instance) for s in result.segments]
    assert ours == [
        (s["isthing"], s["category_id"] + (0 if s["isthing"] else 79), s.get("instance_id"))
        for s in theirs["segments_info"]
    ]
