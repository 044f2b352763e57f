"""Explanations of hand-made predictions, of which every number is known, and their pictures."""

import json
import math
from typing import get_args

import numpy as np
import pytest
import torch

from refine.drawing.explanation import MARK, WIDTH, explanation_sheet
from refine.drawing.graph import apart, draw_arrow
from refine.errors import RefineError
from refine.fusion import FusionConfig, Method
from refine.fusion.explain import explain
from refine.structures import VOID, Categories, Category, Instances, Prediction
from refine.structures.targets import mask_boxes

CATEGORIES = Categories(
    [
        Category(10, "disc", True, (220, 20, 60)),
        Category(11, "ring", True, (20, 120, 220)),
        Category(12, "haze", False, (90, 90, 90)),
        Category(13, "moss", False, (70, 130, 80)),
    ]
)
SIZE = (6, 16)
METHODS = list(get_args(Method))
CONFIG = FusionConfig(stuff_area=1)


def prediction(masks, scores, labels, sem_seg=None, confidence=None):
    """Boxes around the masks; moss wherever no map is given."""
    size = tuple(masks.shape[1:])
    return Prediction(
        Instances(size, mask_boxes(masks), torch.tensor(scores), torch.tensor(labels), masks=masks),
        torch.full(size, 3) if sem_seg is None else sem_seg,
        torch.full(size, 0.9) if confidence is None else confidence,
    )


def told_of(raw, methods=METHODS, config=CONFIG, occlusion=None, ranking=None):
    return explain(raw, categories=CATEGORIES, methods=methods, config=config, occlusion=occlusion, ranking=ranking)


def picture(size=SIZE):
    return torch.full((3, *size), 128, dtype=torch.uint8)


@pytest.fixture
def raw():
    """From the worst to the best: one that is not kept, 1 × 8 pixels, 4 × 5 pixels, 4 × 5 pixels.

    By falling score, 1 and 2 share two columns of 4 pixels, 0.4 of each; 2 and 3 share one pixel, 0.05 and
    0.125 of them, too little to be asked.
    """
    masks = torch.zeros(4, *SIZE, dtype=torch.bool)
    masks[0, :, 10:] = True
    masks[1, 3, 7:15] = True
    masks[2, :4, 3:8] = True
    masks[3, :4, :5] = True
    return prediction(masks, [0.2, 0.6, 0.8, 0.9], [0, 1, 0, 1])


def occlusion(instances, pairs):
    """Of 1 and 2, by falling score: 2 lies in front."""
    assert pairs.tolist() == [[0, 1]]
    assert instances.scores.tolist() == pytest.approx([0.9, 0.8, 0.6])
    matrix = torch.full((3, 3), 0.5)
    matrix[0, 1], matrix[1, 0] = 0.1, 0.9
    return matrix


def ranking(instances):
    return torch.tensor([0.3, 0.2, 0.7])


def test_record(raw):
    record = told_of(raw, occlusion=occlusion, ranking=ranking).to_json()
    assert json.loads(json.dumps(record)) == record
    assert (record["size"], record["methods"], record["left_out"]) == ([6, 16], METHODS, [])
    assert record["contested"] == 8 + 1
    assert [(i["number"], i["place"], i["class"]) for i in record["instances"]] == [
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
    assert (first["i"], first["j"], first["pixels"], first["asked"]) == (1, 2, 8, True)
    assert first["share"] == pytest.approx([0.4, 0.4])
    assert first["class"] == ["ring", "disc"]
    assert first["score"] == pytest.approx([0.9, 0.8])
    assert first["O"] == pytest.approx([0.1, 0.9])
    # Equation 7 with σ = 2.5.
    expected = [0.9 * math.exp(-((0.1 - 1) ** 2) / 2.5), 0.8 * math.exp(-((0.9 - 1) ** 2) / 2.5)]
    assert first["soft_O"] == pytest.approx(expected, abs=1e-5)
    assert first["front"] == {"heuristic": 1, "shr": 1, "srm": 1, "ocfusion": 2, "strong": 2, "soe": 2}

    assert (second["i"], second["j"], second["pixels"], second["asked"]) == (2, 3, 1, False)
    assert second["share"] == pytest.approx([0.05, 0.125])
    assert second["O"] is second["soft_O"] is None
    assert second["front"] == dict.fromkeys(METHODS, 2) | {"srm": 3}


def test_a_score_that_outweighs_the_occlusion(raw):
    """At σ = 25, equation 7 lets the score decide what O alone would decide the other way."""
    told = told_of(raw, ["heuristic", "ocfusion", "soe"], FusionConfig(sigma=25.0), occlusion)
    assert 0.9 * math.exp(-0.81 / 25) > 0.8 * math.exp(-0.01 / 25)
    assert told.to_json()["pairs"][0]["front"] == {"heuristic": 1, "ocfusion": 2, "soe": 1}
    assert int(told.differs("ocfusion").sum()) == 8
    assert int(told.differs("soe").sum()) == 0


def test_small_lies_on_large_by_boxes():
    masks = torch.zeros(2, *SIZE, dtype=torch.bool)
    masks[0, :, :12] = True
    masks[1, 1:4, 2:6] = True
    record = told_of(prediction(masks, [0.9, 0.7], [0, 1]), ["heuristic", "shr"]).to_json()
    assert record["left_out"] == ["srm", "ocfusion", "strong", "soe"]
    assert record["pairs"][0]["front"] == {"heuristic": 1, "shr": 2}
    assert record["instances"][1]["shown"] == {"heuristic": 0, "shr": 12}
    assert record["instances"][1]["ranking"] is record["pairs"][0]["O"] is None


@pytest.mark.parametrize("applied", [True, False])
def test_what_unknown_erasing_takes(applied):
    """Uncertain moss goes, uncertain things and certain haze stay; it is told even where it is not applied."""
    sem_seg = torch.full(SIZE, 2)
    sem_seg[:, 10:] = 3
    sem_seg[0] = VOID
    sem_seg[5, :4] = 1
    confidence = torch.full(SIZE, 0.8)
    confidence[:, 10:], confidence[5, :4] = 0.25, 0.1
    confidence[1, 10] = 0.55
    none = torch.zeros(0, *SIZE, dtype=torch.bool)
    config = FusionConfig(stuff_area=1, unknown_erasing=applied)
    told = told_of(prediction(none, [], [], sem_seg, confidence), ["heuristic", "shr"], config)
    (erased,) = told.to_json()["erased"]
    assert (erased["class"], erased["pixels"]) == ("moss", 30)
    assert erased["confidence"] == pytest.approx((29 * 0.25 + 0.55) / 30, abs=1e-5)
    assert (told.shown["heuristic"][1:, 10:] == (-1 if applied else 3)).all()
    assert marked(explanation_sheet(picture(), told))


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_to_decide(count, raw):
    best = Prediction(raw.instances[torch.arange(4 - count, 4)], raw.sem_seg, raw.sem_confidence)
    told = told_of(
        best,
        occlusion=lambda instances, pairs: torch.zeros(len(instances), len(instances)),
        ranking=lambda instances: instances.scores,
    )
    record = told.to_json()
    assert (len(record["instances"]), record["pairs"], record["contested"]) == (count, [], 0)
    assert not marked(explanation_sheet(picture(), told))


def test_a_missing_head_is_named(raw):
    with pytest.raises(RefineError, match="'soe': `occlusion` is missing"):
        told_of(raw, ["heuristic", "soe"])
    with pytest.raises(RefineError, match="'srm': `ranking` is missing"):
        told_of(raw, ["heuristic", "srm"])


def marked(sheet):
    return bool((sheet == torch.tensor(MARK)[:, None, None]).all(0).any())


def test_sheet_marks_what_differs(raw):
    """Three columns, the last of them a rule's; nothing is marked where it agrees with the heuristic."""
    sheets = [
        explanation_sheet(picture(), told_of(raw, ["heuristic", "soe"], FusionConfig(sigma=sigma), occlusion))
        for sigma in (25.0, 2.5)
    ]
    for sheet in sheets:
        assert (sheet.dtype, sheet.shape[0], sheet.shape[2]) == (torch.uint8, 3, 3 * WIDTH + 4 * 12)
    left, right = slice(0, 2 * WIDTH + 24), slice(2 * WIDTH + 24, None)
    assert not marked(sheets[0])
    assert not marked(sheets[1][..., left])
    assert marked(sheets[1][:, : sheets[1].shape[1] // 3, right])  # the result
    assert marked(sheets[1][:, sheets[1].shape[1] // 3 :, right])  # the decisions


def test_ocfusion_and_strong_share_a_column(raw):
    told = told_of(raw, ["heuristic", "ocfusion", "strong"], occlusion=occlusion)
    assert explanation_sheet(picture(), told).shape[2] == 3 * WIDTH + 4 * 12


@pytest.mark.parametrize("size", [(1, 1), (300, 2), (2, 300)])
def test_odd_sizes_and_equal_masks(size):
    masks = torch.ones(45, *size, dtype=torch.bool)
    told = told_of(prediction(masks, [0.9 - 0.001 * n for n in range(45)], [0] * 45), ["heuristic", "shr"])
    assert len(told.pairs()) == 45 * 44 / 2
    assert explanation_sheet(picture(size), told).shape[2] == 3 * WIDTH + 4 * 12


def test_sheet_of_another_picture(raw):
    with pytest.raises(ValueError, match=r"image \(6, 17\), told \(6, 16\)"):
        explanation_sheet(picture((6, 17)), told_of(raw, ["heuristic"]))


def test_points_part():
    points = np.array([[50.0, 50], [50, 50], [52, 51], [200, 50]])
    moved = apart(points, 20)
    distance = np.linalg.norm(moved[:, None] - moved, axis=2) + 1000 * np.eye(4)
    assert distance.min() > 19
    np.testing.assert_array_equal(moved[3], points[3])
    assert apart(np.zeros((0, 2)), 20).shape == (0, 2)


def test_arrows_have_their_heads_at_the_end():
    canvas = np.zeros((60, 200, 3), np.uint8)
    draw_arrow(canvas, (20.0, 30.0), (180.0, 30.0), (255, 255, 255))
    width = (canvas[..., 0] > 200).sum(0)  # of the stroke, in each column
    assert width[140:175].max() > 8
    assert 1 <= width[40:140].min() <= width[40:140].max() <= 4
    assert not width[:25].any()
    assert not width[175:].any()
