"""Tests of the calls of learned heads by `refine.fuse`, and of invalid input."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.scenes import CATEGORIES, SMALL, THINGS, scene

from refine.errors import RefineError
from refine.fusion import FusionConfig, fuse
from refine.structures import VOID, Instances

LEARNED = ("ocfusion", "strong", "soe")


@pytest.mark.parametrize("method", LEARNED)
def test_a_head_is_evaluated_only_for_overlapping_pairs(method):
    case = scene(3)
    evaluated = []

    def head(instances, pairs):
        assert bool((instances.scores >= SMALL.score_threshold).all())
        assert bool((pairs[:, 0] < pairs[:, 1]).all())
        flat = instances.masks.flatten(1).double()
        common = flat @ flat.T
        share = common / common.diagonal()[:, None]
        enough = torch.maximum(share, share.T)[pairs[:, 0], pairs[:, 1]] >= SMALL.pair_overlap
        assert bool(enough.all())
        evaluated.append(len(pairs))
        # Select the given instances in the matrix.
        indices = [next(n for n, s in enumerate(case.instances.scores) if s == score) for score in instances.scores]
        return case.occlusion[indices][:, indices]

    result = case.fuse(method, occlusion=head)
    assert evaluated[0] > 0
    assert torch.equal(result.segment_ids, case.fuse(method).segment_ids)


def test_a_ranking_function_gets_the_kept_instances():
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
def test_missing_inputs_raise(method, changes, words):
    config = replace(SMALL, unknown_erasing="sem_confidence" in changes)
    with pytest.raises(RefineError) as error:
        scene(0).fuse(method, config, **changes)
    assert all(word in str(error.value) for word in words)


def test_labels_that_are_not_contiguous_raise():
    case = scene(0)
    case.instances.labels[0] = THINGS  # stuff
    with pytest.raises(RefineError, match=r"instances.labels: expected labels 0..2"):
        case.fuse("heuristic")
    case = scene(0)
    case.sem_seg[0, 0] = 255
    with pytest.raises(RefineError, match=r"sem_seg.*255"):
        case.fuse("heuristic")


@pytest.mark.parametrize(
    ("field", "change", "words"),
    [
        (
            "masks",
            lambda v: v.float() * 0.7,
            r"Instances\.masks: expected 0 and 1, got torch\.float32.*0\.7; threshold",
        ),
        ("masks", lambda v: v.int() * 2, r"Instances\.masks: expected 0 and 1, got torch\.int32.*first 2"),
        ("labels", lambda v: v.float(), r"instances\.labels.*expected integers"),
        ("scores", lambda v: v * 9, r"instances\.scores.*0-1"),
        ("scores", lambda v: v * torch.nan, r"instances\.scores.*0-1"),
        ("boxes", lambda v: v * torch.nan, r"instances\.boxes.*finite"),
        ("roi_masks", lambda v: torch.full((8, 4, 4), -3.0), r"instances\.roi_masks.*0-1.*sigmoid"),
        ("roi_masks", lambda v: torch.full((8, 4, 4), torch.nan), r"instances\.roi_masks.*0-1.*sigmoid"),
        ("sem_seg", lambda v: v.float(), "sem_seg.*expected integers"),
    ],
)
def test_values_of_another_kind_raise(field, change, words):
    case = scene(0)
    owner = case if field == "sem_seg" else case.instances
    setattr(owner, field, change(getattr(owner, field)))
    with pytest.raises(RefineError, match=words):
        case.fuse("heuristic")


@pytest.mark.parametrize(
    "confidence", [torch.full((16, 20), 200, dtype=torch.uint8), torch.full((16, 20), torch.nan)]
)
def test_confidence_must_be_a_probability(confidence):
    with pytest.raises(RefineError, match="sem_confidence: expected floats 0-1"):
        scene(0).fuse("heuristic", sem_confidence=confidence)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("method", ["heuristic", "srm", "soe"])
def test_arrays_and_tensors_are_equivalent(method, dtype):
    case = scene(7)
    some = case.instances
    mirrored = some.masks.numpy()[:, :, ::-1].astype(dtype)[:, :, ::-1]  # negative strides
    result = fuse(
        Instances(
            list(some.image_size),
            some.boxes.double().numpy(),
            some.scores.tolist(),
            some.labels.numpy().astype(np.int32),
            masks=mirrored,
        ),
        case.sem_seg.numpy().astype(np.int16),
        categories=CATEGORIES,
        method=method,
        sem_confidence=case.confidence.numpy(),
        occlusion=case.occlusion.numpy(),
        ranking=case.ranking.tolist(),
        config=SMALL,
    )
    expected = case.fuse(method)
    assert torch.equal(result.segment_ids, expected.segment_ids)
    assert [s.area for s in result.segments] == [s.area for s in expected.segments]


def test_masks_of_0_and_255_are_accepted():
    some = scene(7).instances
    grey = Instances(
        some.image_size, some.boxes, some.scores, some.labels, masks=some.masks.numpy() * np.uint8(255)
    )
    assert torch.equal(grey.masks, some.masks)


def test_inputs_may_require_gradients():
    case = scene(7)
    case.instances.scores.requires_grad_()
    result = case.fuse(
        "soe", occlusion=case.occlusion.requires_grad_(), sem_confidence=case.confidence.requires_grad_()
    )
    assert torch.equal(result.segment_ids, scene(7).fuse("soe").segment_ids)


def test_fusion_without_a_semantic_map():
    case = scene(7)
    alone = fuse(case.instances, None, categories=CATEGORIES, config=SMALL)
    assert alone.segments
    assert all(segment.isthing for segment in alone.segments)
    expected = fuse(case.instances, torch.full_like(case.sem_seg, VOID), categories=CATEGORIES, config=SMALL)
    assert torch.equal(alone.segment_ids, expected.segment_ids)
    with pytest.raises(RefineError, match="sem_confidence: given without `sem_seg`"):
        fuse(case.instances, None, categories=CATEGORIES, sem_confidence=case.confidence)
    with pytest.raises(RefineError, match=r"--unknown-erasing\) needs the confidence"):
        fuse(case.instances, None, categories=CATEGORIES, config=replace(SMALL, unknown_erasing=True))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"instances": {"boxes": [], "scores": []}},
            r"instances: expected refine\.Instances, got dict; .*adapters",
        ),
        ({"sem_seg": "map.png"}, "sem_seg: expected an array or a tensor, got str"),
        ({"categories": ["cat"]}, r"categories: expected refine\.Categories, got list"),
        ({"occlusion": "head", "method": "soe"}, "occlusion: expected an array or a tensor, got str"),
    ],
)
def test_arguments_of_another_type_raise(changes, words):
    case = scene(0)
    given = {"instances": case.instances, "sem_seg": case.sem_seg, "categories": CATEGORIES} | changes
    with pytest.raises(TypeError, match=words):
        fuse(given.pop("instances"), given.pop("sem_seg"), **given)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"boxes": None}, TypeError, "Instances.boxes: expected an array or a tensor, got NoneType"),
        ({"scores": torch.ones(2, 1)}, ValueError, r"Instances.scores: expected shape \(N\), got \(2, 1\)"),
        (
            {"roi_masks": torch.ones(2, 1, 7, 7)},
            ValueError,
            r"roi_masks: expected shape \(N, M, M\), got \(2, 1, 7, 7\)",
        ),
        ({"masks": np.zeros((2, 1, 8, 8))}, ValueError, r"masks: expected 2 masks of \(8, 8\), got \(2, 1, 8, 8\)"),
        ({"labels": ["cat", "dog"]}, TypeError, "Instances.labels: expected an array"),
    ],
)
def test_invalid_instances_raise(changes, error, words):
    fields = {"image_size": (8, 8), "boxes": np.zeros((2, 4)), "scores": np.ones(2), "labels": np.zeros(2, int)}
    with pytest.raises(error, match=words):
        Instances(**(fields | changes))


def test_instances_without_masks_raise():
    case = scene(0)
    case.instances.masks = None
    with pytest.raises(RefineError, match=r"`masks` nor `roi_masks`"):
        case.fuse("heuristic")


@pytest.mark.parametrize("value", [-4.0, 2.0, torch.nan])
def test_probabilities_of_classes_are_0_to_1(value):
    config = replace(SMALL, unknown_erasing=True, ue_region="dilated")
    with pytest.raises(RefineError, match=r"sem_probabilities: expected floats 0-1.*softmax"):
        scene(0).fuse("heuristic", config, sem_probabilities=torch.full((6, 16, 20), value))


@pytest.mark.parametrize("ranking", [torch.full((8,), torch.nan), lambda instances: instances.scores * torch.nan])
def test_a_ranking_has_no_nan(ranking):
    with pytest.raises(RefineError, match="ranking: expected numbers, got NaN"):
        scene(0).fuse("srm", ranking=ranking)


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
def test_shapes_that_do_not_agree_raise(method, changes):
    with pytest.raises(ValueError, match="expected shape"):
        scene(0).fuse(method, **changes)


@pytest.mark.parametrize("method", LEARNED)
def test_occlusion_must_be_a_probability(method):
    with pytest.raises(RefineError, match=r"occlusion.*0 to 1"):
        scene(0).fuse(method, occlusion=torch.randn(8, 8) * 5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"score_treshold": 0.3},
            r"fusion.score_treshold: unknown field \(did you mean score_threshold\?\); give",
        ),
        ({"score_threshold": "0.3"}, "fusion.score_threshold is '0.3'; give a number from 0 to 1"),
        ({"stuff_area": float("inf")}, "fusion.stuff_area is inf"),
        ({"unknown_erasing": 1}, "fusion.unknown_erasing is 1; give true or false"),
        ({"resolve": "take"}, "fusion.resolve is 'take'; give one of steal, wins"),
        ({"sigma": True}, "fusion.sigma is True"),
    ],
)
def test_invalid_thresholds_raise(changes, words):
    with pytest.raises(RefineError, match=words):
        FusionConfig().changed(changes)


def test_changing_a_threshold_keeps_the_others():
    config = FusionConfig(stuff_area=7)
    assert config.changed({"sigma": np.float32(0.5)}) == FusionConfig(stuff_area=7, sigma=0.5)
    assert config == FusionConfig(stuff_area=7)


def test_thresholds_as_a_mapping():
    case = scene(3)
    arguments = (case.instances, case.sem_seg)
    changed = fuse(*arguments, categories=CATEGORIES, config={"score_threshold": 0.8})
    assert (
        changed.segments
        == fuse(*arguments, categories=CATEGORIES, config=FusionConfig(score_threshold=0.8)).segments
    )
    assert changed.segments != fuse(*arguments, categories=CATEGORIES).segments
    with pytest.raises(RefineError, match=r"fusion\.stuff: unknown field"):
        fuse(*arguments, categories=CATEGORIES, config={"stuff": 1})
