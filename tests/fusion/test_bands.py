"""`fuse_bands` gives what `fuse` gives for the whole image."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refine.errors import RefineError
from refine.fusion import FusionConfig
from refine.fusion.bands import PairScores, fuse_bands
from refine.ops.masks import MaskRuns, dense_runs, join_runs, shared_areas
from refine.structures import Instances
from tests.helpers.scenes import CATEGORIES, SMALL, Scene, scene


def in_bands(case: Scene, rows: int, method: str, config: FusionConfig):
    instances = case.instances
    instances.runs = instances.mask_runs()
    pairs = torch.combinations(torch.arange(len(instances)))
    values = torch.stack([case.occlusion[pairs[:, 0], pairs[:, 1]], case.occlusion[pairs[:, 1], pairs[:, 0]]], 1)
    return fuse_bands(
        instances,
        lambda top, bottom: (case.sem_seg[top:bottom], case.confidence[top:bottom]),
        rows,
        categories=CATEGORIES,
        method=method,
        occlusion=PairScores(pairs, values),
        ranking=case.ranking,
        config=config,
    )


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    count=st.sampled_from([0, 1, 8, 90]),
    rows=st.integers(1, 17),
    method=st.sampled_from(["heuristic", "srm", "shr", "strong", "soe"]),
    changes=st.fixed_dictionaries(
        {
            "unknown_erasing": st.booleans(),
            "ue_radius": st.sampled_from([0, 50, 200]),
            "stuff_area": st.sampled_from([0, 12, 40]),
            "resolve": st.sampled_from(["steal", "wins"]),
            "soft_scores": st.booleans(),
        }
    ),
)
def test_bands_equal_the_whole(seed, count, rows, method, changes):
    case = scene(seed, count, (64, 48) if count == 90 else (16, 20))
    config = SMALL.changed(changes)
    whole = case.fuse(method, config)
    fused = in_bands(case, rows, method, config)
    parts = list(fused.bands())
    assert [len(part) for part in parts[:-1]] == [rows] * (len(parts) - 1)
    assert torch.equal(torch.cat(parts), whole.segment_ids)
    assert len(fused.segments) == len(whole.segments)
    for one, other in zip(fused.segments, whole.segments, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-6)
        assert (one.id, one.category_id, one.isthing, one.area, one.bbox, one.instance) == (
            (other.id, other.category_id, other.isthing, other.area, other.bbox, other.instance)
        )


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), method=st.sampled_from(["srm", "strong", "soe"]))
def test_duplicates_with_other_occlusion_and_ranking(seed, method):
    """Instances 2 and 5 come two and three times."""
    case, g = scene(seed), torch.Generator().manual_seed(seed)
    twice = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 2, 5, 5])
    case.instances = case.instances[twice]
    case.occlusion, case.ranking = torch.rand(11, 11, generator=g), torch.rand(11, generator=g)
    whole = case.fuse(method, SMALL)
    fused = in_bands(case, 5, method, SMALL)
    assert torch.equal(torch.cat(list(fused.bands())), whole.segment_ids)
    assert [s.instance for s in fused.segments] == [s.instance for s in whole.segments]


def test_dilated_regions_are_refused():
    with pytest.raises(RefineError, match="use 'core' with tiles"):
        in_bands(scene(0), 4, "heuristic", FusionConfig(unknown_erasing=True, ue_region="dilated"))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), top=st.integers(0, 3), left=st.integers(0, 3))
def test_masks_in_a_larger_image(seed, top, left):
    masks = torch.rand(4, 5, 6, generator=torch.Generator().manual_seed(seed)) < 0.8  # runs over several rows
    placed = dense_runs(masks).placed(top, left, (9, 10))
    expected = torch.zeros(4, 9, 10, dtype=torch.bool)
    expected[:, top : top + 5, left : left + 6] = masks
    assert torch.equal(placed.dense(), expected)
    assert ((placed.end - 1) // 10 == placed.start // 10).all()
    both = join_runs([placed, placed[1:2]], (9, 10))
    assert torch.equal(both.dense(), torch.cat([expected, expected[1:2]]))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), count=st.integers(0, 7), density=st.sampled_from([0.1, 0.5, 1.0]))
def test_shared_areas(seed, count, density):
    masks = torch.rand(count, 6, 7, generator=torch.Generator().manual_seed(seed)) < density
    pairs, areas = shared_areas(dense_runs(masks))
    expected = {
        (i, j): int((masks[i] & masks[j]).sum())
        for i in range(count)
        for j in range(i + 1, count)
        if (masks[i] & masks[j]).any()
    }
    assert dict(zip(map(tuple, pairs.tolist()), areas.tolist(), strict=True)) == expected


def test_no_masks():
    empty = join_runs([], (3, 4))
    assert isinstance(empty, MaskRuns)
    assert len(shared_areas(empty)[0]) == 0
    assert len(Instances.empty((3, 4)).mask_runs()) == 0
