"""Tests of the heuristic against detectron2's own result for the same predictions."""

import numpy as np
import pytest
import torch

from refine.fusion import fuse
from refine.structures import VOID, Categories, Category, Instances


def combine(masks, scores, sem_seg, score_threshold=0.5, overlap_threshold=0.5, stuff_area=4096):
    """Apply Kirillov's heuristic as documented by detectron2: paste mask by mask, then stuff class by class.

    Class 0 of the semantic map is "things".

    Returns:
        Map of segment ids, and (stuff class or None, instance or None) of each segment.
    """
    panoptic, segments = torch.zeros_like(sem_seg, dtype=torch.int64), []
    for n in torch.argsort(-scores).tolist():
        area, free = int(masks[n].sum()), masks[n] & (panoptic == 0)
        if scores[n] < score_threshold or not area or (area - int(free.sum())) / area > overlap_threshold:
            continue
        segments.append((None, n))
        panoptic[free] = len(segments)
    for label in sem_seg.unique().tolist():
        free = (sem_seg == label) & (panoptic == 0)
        if label and int(free.sum()) >= stuff_area:
            segments.append((label, None))
            panoptic[free] = len(segments)
    return panoptic, segments


@pytest.mark.parametrize("view", ["same_size", "resized"])
@pytest.mark.parametrize("model", ["panoptic_fpn_R_50", "panoptic_fpn_R_50_dconv_cascade_gn"])
def test_result_equals_detectron2(shared_dir, model, view):
    path = shared_dir / "fixtures/detectron2" / model / "reference.pt"
    expected = torch.load(path, weights_only=True)[view]
    size, predicted = tuple(expected["output_size"]), expected["instances"]
    masks = np.unpackbits(predicted["pred_masks_packed"].numpy(), axis=1)[:, : size[0] * size[1]]
    masks = torch.from_numpy(masks).view(-1, *size).bool()
    categories = Categories([Category(n + 1, f"{n}", n < 80, (0, 0, 0)) for n in range(133)])
    sem_seg = expected["sem_seg"].long()
    result = fuse(
        Instances(size, predicted["pred_boxes"], predicted["scores"], predicted["pred_classes"], masks=masks),
        torch.where(sem_seg > 0, sem_seg + 79, VOID),
        categories=categories,
        method="heuristic",
    )
    assert torch.equal(result.segment_ids, expected["panoptic_seg"])
    got = [(s.isthing, s.category_id - 1, s.instance) for s in result.segments]
    assert got == [
        (s["isthing"], s["category_id"] + (0 if s["isthing"] else 79), s.get("instance_id"))
        for s in expected["segments_info"]
    ]
    # The documented rule, implemented literally, gives the same result.
    panoptic, segments = combine(masks, predicted["scores"], sem_seg)
    assert torch.equal(panoptic.int(), expected["panoptic_seg"])
    assert [n for _, n in segments] == [s.get("instance_id") for s in expected["segments_info"]]
