"""F1 of nuclei, against brute force, and the numbers of nuclei given to other programs."""

import numpy as np
import pytest
import torch
from helpers.programs import program

from refine.data.segments import SegmentMap
from refine.evaluation.pq import PanopticQuality
from refine.inference.drawings import to_result
from refine.structures import Categories, Category

CATEGORIES = Categories([Category(1, "nucleus", True, (1, 2, 3)), Category(2, "back", False, (4, 5, 6))])


@pytest.fixture(scope="module")
def cells():
    with program("cells") as module:
        yield module


def squares(seed: int, shift: int) -> SegmentMap:
    """Squares of random sizes on a grid of 6 × 6, moved down by `shift`; every fifth is missing if moved."""
    index = torch.full((72, 72), 36, dtype=torch.int32)
    for n, size in enumerate(np.random.default_rng(seed).integers(3, 12, 36).tolist()):
        if not shift or n % 5:
            y, x = 12 * (n // 6) + shift, 12 * (n % 6)
            index[y : y + size, x : x + size] = n
    return SegmentMap(index, torch.tensor([0] * 36 + [1]), torch.zeros(37, dtype=torch.bool))


def brute_force(pairs: list[tuple[SegmentMap, SegmentMap]], threshold: float) -> float:
    matched = total = 0
    for maps in pairs:
        true, found = ([m.index == n for n in range(36) if (m.index == n).any()] for m in maps)
        ious = [float((a & b).sum() / (a | b).sum()) for a in true for b in found]
        matched += sum(iou > 0.5 and iou >= threshold for iou in ious)
        total += len(true) + len(found)
    return 2 * matched / total


def test_f1(cells):
    f1, quality = cells.F1(), PanopticQuality(CATEGORIES)
    pairs = [(squares(seed, 0), squares(seed, shift)) for seed, shift in ((0, 1), (1, 2))]
    for n, maps in enumerate(pairs):
        truth, result = (to_result(m, CATEGORIES) for m in maps)
        f1.update(truth, result)
        ids = (truth.segment_ids.numpy(), truth.segments, result.segment_ids.numpy(), result.segments)
        quality.update(*ids, image_id=n)
    values = f1.compute()
    assert values == pytest.approx({f"F1 at {t:g}": brute_force(pairs, t) for t in (0.5, 0.6, 0.7, 0.8, 0.9)})
    assert values["F1 at 0.5"] == pytest.approx(quality.compute().group(isthing=True)["rq"])
    assert 0.9 > values["F1 at 0.5"] > values["F1 at 0.7"] > values["F1 at 0.9"] == 0


def test_f1_without_nuclei(cells):
    index = torch.zeros(4, 4, dtype=torch.int32)
    empty = to_result(SegmentMap(index, torch.tensor([1]), torch.tensor([False])), CATEGORIES)
    f1 = cells.F1()
    f1.update(empty, empty)
    assert f1.compute()["F1 at 0.5"] == 0


def test_number_nuclei(cells):
    """Segments: background, nucleus, crowd, nucleus; -1 is void."""
    index = torch.tensor([[0, 1, 1, -1], [2, 2, 3, 0]], dtype=torch.int32)
    segments = SegmentMap(index, torch.tensor([1, 0, 0, 0]), torch.tensor([False, False, True, False]))
    assert cells.number_nuclei(segments).tolist() == [[0, 1, 1, -1], [-1, -1, 2, 0]]
