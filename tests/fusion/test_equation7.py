"""Tests of equation 7: closed form, limits, and the bound on what an occlusion can overrule."""

from dataclasses import replace

import torch
from helpers.scenes import CATEGORIES, SMALL, drawn, of_masks, scene, shown
from hypothesis import given, settings
from hypothesis import strategies as st

from refine.fusion import fuse
from refine.structures import VOID

NO_STUFF = torch.full((4, 6), VOID)


@given(
    p=st.floats(0, 1),
    scores=st.tuples(st.floats(0.31, 1), st.floats(0.31, 1)),
    sigma=st.floats(0.05, 20),
)
@settings(max_examples=60, deadline=None)
def test_closed_form_of_equation_7(p, scores, sigma):
    """With O(j, i) = 1 − O(i, j) = 1 − p: i lies in front if p > ½ − (σ/2)·ln(s_i / s_j)."""
    masks = drawn("####.. ####.. ####.. ####..", "..#### ..#### ..#### ..####")
    scores = torch.tensor(scores)
    margin = p - 0.5 + sigma / 2 * float((scores[0].double() / scores[1].double()).log())
    if abs(margin) < 1e-5:
        return
    result = fuse(
        of_masks(masks, scores.tolist()),
        NO_STUFF,
        categories=CATEGORIES,
        method="soe",
        occlusion=torch.tensor([[0.0, p], [1 - p, 0.0]], dtype=torch.float64),
        config=replace(SMALL, sigma=sigma, overlap_threshold=0.6),
    )
    assert (shown(result)[:, 2:4] == (0 if margin > 0 else 1)).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_limits_of_sigma(seed):
    case = scene(seed)
    # σ → 0: scores do not matter; σ → ∞: only scores matter. Pairwise and heuristic merges differ only at exactly
    # the overlap threshold, which no mask can reach if it is irrational.
    config = replace(SMALL, overlap_threshold=0.5**0.5)
    small = case.fuse("soe", replace(config, sigma=1e-9))
    assert torch.equal(small.segment_ids, case.fuse("ocfusion", config).segment_ids)
    large = case.fuse("soe", replace(config, sigma=1e9))
    assert torch.equal(large.segment_ids, case.fuse("heuristic", config).segment_ids)


def test_confidence_below_the_bound_never_wins():
    # If s_i / s_j < e^(−1/σ) = 0.67 (σ = 2.5), i never wins, even with O(i, j) = 1, O(j, i) = 0.
    masks = drawn("####.. ####.. ####.. ####..", "..#### ..#### ..#### ..####")
    occlusion = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    for score, winner in ((0.66, 0), (0.68, 1)):
        instances = of_masks(masks, [1.0, score])
        result = fuse(
            instances,
            NO_STUFF,
            categories=CATEGORIES,
            method="soe",
            occlusion=occlusion,
            config=replace(SMALL, overlap_threshold=0.6),
        )
        assert (shown(result)[:, 2:4] == winner).all()
