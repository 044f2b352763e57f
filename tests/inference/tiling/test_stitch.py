"""An image that is predicted in windows gives the result of the whole image."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refine.formats.windows import TensorWindows
from refine.inference.predictor import Predictor
from refine.inference.tiling.plan import Tiling, plan
from refine.inference.tiling.predict import predict_tiles
from refine.inference.tiling.stitch import Found, stitch
from refine.structures import Instances
from tests.helpers.painted import PaintedNetwork, painted


def tiled(predictor: Predictor, image: torch.Tensor, tile: int, overlap: int | None):
    fused = predict_tiles(predictor, TensorWindows(image), Tiling(tile, overlap))
    ids = torch.cat(list(fused.bands()))
    # Every id is one segment, and no pixel belongs to two.
    areas = torch.bincount(ids.flatten().long(), minlength=len(fused.segments) + 1)
    assert areas[1:].tolist() == [segment.area for segment in fused.segments]
    return ids, fused.segments


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    count=st.integers(0, 12),
    tile=st.sampled_from([16, 24, 40]),
    divisor=st.sampled_from([2, 3, 4]),
    method=st.sampled_from(["heuristic", "srm", "shr", "strong", "soe"]),
)
def test_objects_up_to_the_overlap(seed, size, count, tile, divisor, method):
    image = painted(seed, size, count, tile // divisor - 1)
    predictor = Predictor(PaintedNetwork(method))
    whole = predictor(image)
    ids, segments = tiled(predictor, image, tile, tile // divisor)
    assert torch.equal(ids, whole.segment_ids)
    for one, other in zip(segments, whole.segments, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-6)
        assert (one.category_id, one.area, one.bbox) == (other.category_id, other.area, other.bbox)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    count=st.integers(0, 6),
    tile=st.sampled_from([16, 24, 40]),
    divisor=st.sampled_from([2, 3, 4]),
)
def test_objects_larger_than_tiles(seed, size, count, tile, divisor):
    image = painted(seed, size, count, 150)
    predictor = Predictor(PaintedNetwork())
    whole = predictor(image)
    ids, segments = tiled(predictor, image, tile, tile // divisor)
    assert torch.equal(ids, whole.segment_ids)
    assert len(segments) == len(whole.segments)


@pytest.mark.parametrize(("label", "columns"), [(0, (38, 54)), (1, (42, 57)), (0, (37, 46))])
def test_windows_that_disagree_lose_no_object(label, columns):
    """Each window's box has its centre near or in the core of the other one; the masks or the classes differ."""
    size = (30, 100)
    windows = plan(size, Tiling(64, 28), 1)
    assert [w.core[1::2] for w in windows] == [(0, 50), (50, 100)]
    found = []
    for n, (start, end, kind) in enumerate([(44, 58, 0), (*columns, label)]):
        mask = torch.zeros(1, *size, dtype=torch.bool)
        mask[:, 8:20, start:end] = True
        boxes, scores, labels = torch.tensor([[start, 8.0, end, 20]]), torch.tensor([0.6]), torch.tensor([kind])
        runs = Instances(size, boxes, scores, labels, masks=mask).mask_runs()
        found.append(Found(n, Instances(size, boxes, scores, labels, runs=runs)))
    assert len(stitch(found, windows, size).instances) >= 1
