"""Tests of explanations of hand-made predictions, whose numbers are all known."""

import json
import math

import pytest
import torch
from helpers.explained import (
    METHODS,
    SIZE,
    explanation_of,
    occlusion,
    overlapping,
    prediction,
    ranking,
)

from refine.errors import RefineError
from refine.fusion import FusionConfig
from refine.fusion.unknown import KEPT
from refine.structures import VOID, Prediction


@pytest.fixture
def raw():
    return overlapping()


def test_record(raw):
    record = explanation_of(raw, occlusion=occlusion, ranking=ranking).to_json()
    assert json.loads(json.dumps(record)) == record
    assert (record["size"], record["methods"], record["left_out"]) == ([6, 16], METHODS, [])
    assert record["contested"] == 8 + 1
    assert [(i["number"], i["index"], i["class"]) for i in record["instances"]] == [
        (1, 3, "ring"),
        (2, 2, "disc"),
        (3, 1, "ring"),
    ]
    assert [i["pixels"] for i in record["instances"]] == [20, 20, 8]
    assert [i["ranking"] for i in record["instances"]] == pytest.approx([0.3, 0.2, 0.7])
    shown = {m: [i["shown"][m] for i in record["instances"]] for m in METHODS}
    assert shown["heuristic"] == shown["shr"] == [20, 12, 7]
    assert shown["srm"] == [20, 11, 8]
    assert shown["ocfusion"] == shown["strong"] == shown["soe"] == [12, 20, 7]

    first, second = record["pairs"]
    assert (first["i"], first["j"], first["pixels"], first["decided"]) == (1, 2, 8, True)
    assert first["share"] == pytest.approx([0.4, 0.4])
    assert first["class"] == ["ring", "disc"]
    assert first["score"] == pytest.approx([0.9, 0.8])
    assert first["O"] == pytest.approx([0.1, 0.9])
    # Equation 7 with σ = 2.5.
    expected = [0.9 * math.exp(-((0.1 - 1) ** 2) / 2.5), 0.8 * math.exp(-((0.9 - 1) ** 2) / 2.5)]
    assert first["soft_O"] == pytest.approx(expected, abs=1e-5)
    assert first["front"] == {"heuristic": 1, "shr": 1, "srm": 1, "ocfusion": 2, "strong": 2, "soe": 2}

    assert (second["i"], second["j"], second["pixels"], second["decided"]) == (2, 3, 1, False)
    assert second["share"] == pytest.approx([0.05, 0.125])
    assert second["O"] is second["soft_O"] is None
    assert second["front"] == dict.fromkeys(METHODS, 2) | {"srm": 3}


def test_a_score_that_outweighs_the_occlusion(raw):
    """At σ = 25, the score decides equation 7 where O alone would decide the opposite."""
    explanation = explanation_of(raw, ["heuristic", "ocfusion", "soe"], FusionConfig(sigma=25.0), occlusion)
    assert 0.9 * math.exp(-0.81 / 25) > 0.8 * math.exp(-0.01 / 25)
    assert explanation.to_json()["pairs"][0]["front"] == {"heuristic": 1, "ocfusion": 2, "soe": 1}
    assert int(explanation.differs("ocfusion").sum()) == 8
    assert int(explanation.differs("soe").sum()) == 0


def test_shr_puts_small_boxes_in_front():
    masks = torch.zeros(2, *SIZE, dtype=torch.bool)
    masks[0, :, :12] = True
    masks[1, 1:4, 2:6] = True
    record = explanation_of(prediction(masks, [0.9, 0.7], [0, 1]), ["heuristic", "shr"]).to_json()
    assert record["left_out"] == ["srm", "ocfusion", "strong", "soe"]
    assert record["pairs"][0]["front"] == {"heuristic": 1, "shr": 2}
    assert record["instances"][1]["shown"] == {"heuristic": 0, "shr": 12}
    assert record["instances"][1]["ranking"] is record["pairs"][0]["O"] is None


@pytest.mark.parametrize("applied", [True, False])
def test_regions_of_unknown_erasing(applied):
    """Uncertain moss is erased, uncertain things and certain haze are kept; reported even if not applied."""
    sem_seg = torch.full(SIZE, 2)
    sem_seg[:, 10:] = 3
    sem_seg[0] = VOID
    sem_seg[5, :4] = 1
    confidence = torch.full(SIZE, 0.8)
    confidence[:, 10:], confidence[5, :4] = 0.25, 0.1
    confidence[1, 10] = 0.55
    none = torch.zeros(0, *SIZE, dtype=torch.bool)
    config = FusionConfig(stuff_area=1, unknown_erasing=applied)
    explanation = explanation_of(prediction(none, [], [], sem_seg, confidence), ["heuristic", "shr"], config)
    (erased,) = explanation.to_json()["erased"]
    assert (erased["class"], erased["pixels"]) == ("moss", 30)
    assert erased["confidence"] == pytest.approx((29 * 0.25 + 0.55) / 30, abs=1e-5)
    assert (explanation.shown["heuristic"][1:, 10:] == (-1 if applied else 3)).all()


@pytest.mark.parametrize("count", [0, 1])
def test_without_overlapping_pairs(count, raw):
    best = Prediction(raw.instances[torch.arange(4 - count, 4)], raw.sem_seg, raw.sem_confidence)
    explanation = explanation_of(
        best,
        occlusion=lambda instances, pairs: torch.zeros(len(instances), len(instances)),
        ranking=lambda instances: instances.scores,
    )
    record = explanation.to_json()
    assert (len(record["instances"]), record["pairs"], record["contested"]) == (count, [], 0)


def test_a_missing_head_raises(raw):
    with pytest.raises(RefineError, match="'soe': `occlusion` is missing"):
        explanation_of(raw, ["heuristic", "soe"])
    with pytest.raises(RefineError, match="'srm': `ranking` is missing"):
        explanation_of(raw, ["heuristic", "srm"])


def test_erasing_of_dilated_regions():
    """A confident crumb of haze is erased, as in most of its dilated region other classes are likely."""
    raw = prediction(torch.zeros(0, *SIZE, dtype=torch.bool), [], [])
    raw.sem_seg[2:4, 4:6] = 2
    probabilities = torch.nn.functional.one_hot(raw.sem_seg, 4).movedim(2, 0).float()
    raw.sem_probabilities = lambda: probabilities
    config = FusionConfig(stuff_area=1, unknown_erasing=True, ue_region="dilated", ue_radius=133)  # 1 pixel here
    explanation = explanation_of(raw, ["heuristic"], config)
    assert torch.equal(explanation.shown["heuristic"] == -1, raw.sem_seg == 2)
    assert torch.equal(explanation.erased != KEPT, raw.sem_seg == 2)
    assert explanation.to_json()["erased"] == [{"class": "haze", "pixels": 4, "confidence": 0.9}]
