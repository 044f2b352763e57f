"""What `refine.fuse` asks of learned heads, and what it says to bad input."""

from dataclasses import replace

import pytest
import torch
from helpers.scenes import SMALL, THINGS, scene

from refine.errors import RefineError

LEARNED = ("ocfusion", "strong", "soe")


@pytest.mark.parametrize("method", LEARNED)
def test_a_function_is_asked_for_overlapping_pairs_only(method):
    case = scene(3)
    asked = []

    def head(instances, pairs):
        assert bool((instances.scores >= SMALL.score_threshold).all())
        assert bool((pairs[:, 0] < pairs[:, 1]).all())
        flat = instances.masks.flatten(1).double()
        common = flat @ flat.T
        share = common / common.diagonal()[:, None]
        enough = torch.maximum(share, share.T)[pairs[:, 0], pairs[:, 1]] >= SMALL.pair_overlap
        assert bool(enough.all())
        asked.append(len(pairs))
        # What the matrix says, of these instances.
        place = [next(n for n, s in enumerate(case.instances.scores) if s == score) for score in instances.scores]
        return case.occlusion[place][:, place]

    result = case.fuse(method, occlusion=head)
    assert asked[0] > 0
    assert torch.equal(result.segment_ids, case.fuse(method).segment_ids)


def test_a_function_that_ranks_sees_what_is_used():
    case = scene(5)
    result = case.fuse("srm", ranking=lambda some: -some.scores)
    assert torch.equal(result.segment_ids, case.fuse("srm", ranking=-case.instances.scores).segment_ids)


@pytest.mark.parametrize(
    ("method", "changes", "words"),
    [
        ("soe", {"occlusion": None}, ["'soe'", "`occlusion` is missing", "give"]),
        ("ocfusion", {"occlusion": None}, ["'ocfusion'", "`occlusion` is missing"]),
        ("srm", {"ranking": None}, ["'srm'", "`ranking` is missing", "give one score per instance"]),
        ("heuristic", {"sem_confidence": None}, ["unknown_erasing", "sem_confidence"]),
        ("nonsense", {}, ["'nonsense'", "heuristic, shr"]),
    ],
)
def test_what_is_missing(method, changes, words):
    config = replace(SMALL, unknown_erasing="sem_confidence" in changes)
    with pytest.raises(RefineError) as error:
        scene(0).fuse(method, config, **changes)
    assert all(word in str(error.value) for word in words)


def test_labels_that_are_not_contiguous_classes():
    case = scene(0)
    case.instances.labels[0] = THINGS  # stuff
    with pytest.raises(RefineError, match=r"instances.labels.*allows 0..2"):
        case.fuse("heuristic")
    case = scene(0)
    case.sem_seg[0, 0] = 255
    with pytest.raises(RefineError, match=r"sem_seg.*255"):
        case.fuse("heuristic")


@pytest.mark.parametrize(
    ("field", "change", "words"),
    [
        ("masks", lambda v: v.float(), r"instances\.masks.*expected torch\.bool; give `masks > 0\.5`"),
        ("labels", lambda v: v.float(), r"instances\.labels.*expected integers"),
        ("scores", lambda v: v * 9, r"instances\.scores.*0-1"),
        ("scores", lambda v: v * torch.nan, r"instances\.scores.*0-1"),
        ("sem_seg", lambda v: v.float(), "sem_seg.*expected integers"),
    ],
)
def test_values_of_another_kind(field, change, words):
    case = scene(0)
    owner = case if field == "sem_seg" else case.instances
    setattr(owner, field, change(getattr(owner, field)))
    with pytest.raises(RefineError, match=words):
        case.fuse("heuristic")


def test_instances_without_masks():
    case = scene(0)
    case.instances.masks = None
    with pytest.raises(RefineError, match=r"`masks` nor `roi_masks`"):
        case.fuse("heuristic")


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("soe", {"occlusion": torch.zeros(7, 8)}),
        ("soe", {"occlusion": torch.zeros(9, 9)}),
        ("soe", {"occlusion": lambda instances, pairs: torch.zeros(2, 2)}),
        ("srm", {"ranking": torch.zeros(9)}),
        ("srm", {"ranking": lambda instances: torch.zeros(99)}),
        ("heuristic", {"sem_confidence": torch.zeros(3, 4)}),
    ],
)
def test_shapes_that_do_not_agree(method, changes):
    with pytest.raises(ValueError, match="expected shape"):
        scene(0).fuse(method, **changes)


@pytest.mark.parametrize("method", LEARNED)
def test_occlusion_is_a_probability(method):
    with pytest.raises(RefineError, match=r"occlusion.*0 to 1"):
        scene(0).fuse(method, occlusion=torch.randn(8, 8) * 5)
