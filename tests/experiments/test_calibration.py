"""Calibration of the occlusion head: reliability, expected calibration error, and pairs of detections."""

import math

import pytest
import torch
from helpers.two_objects import BACK, FRONT, Painted, make_prediction

from refine.experiments.calibration import Calibration, reliability
from refine.fusion import FusionConfig


def test_reliability_against_a_loop():
    generator = torch.Generator().manual_seed(0)
    occlusion = torch.rand(200, 2, generator=generator)
    occlusion[0] = torch.tensor([1.0, 0.0])  # both ends belong to a bin
    rows, error = reliability(occlusion)
    samples = [(o, 1) for o in occlusion[:, 0].tolist()] + [(o, 0) for o in occlusion[:, 1].tolist()]
    total = 0.0
    for low, high, count, mean, seen in rows:
        inside = [(o, t) for o, t in samples if low <= o < high or (high == 1.0 and o == 1.0)]
        assert count == len(inside)
        assert mean == pytest.approx(sum(o for o, _ in inside) / count)
        assert seen == pytest.approx(sum(t for _, t in inside) / count)
        total += abs(sum(o - t for o, t in inside))
    assert sum(row[2] for row in rows) == 400
    assert error == pytest.approx(total / 400)


def test_error_of_calibrated_and_overconfident_predictions():
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(20000, generator=generator)
    right = torch.rand(20000, generator=generator) < p
    front = torch.where(right, p, 1 - p)  # O of the instance that turns out to lie in front
    assert reliability(torch.stack([front, 1 - front], 1))[1] < 0.02
    sure = (front > 0.5).float()
    assert reliability(torch.stack([sure, 1 - sure], 1))[1] == pytest.approx(0.25, abs=0.02)
    assert math.isnan(reliability(torch.empty(0, 2))[1])


def test_pairs_of_detections_by_kind():
    calibration = Calibration()
    false = ([0.0, 0, 10, 10], 1, 0.9)
    unused = (*BACK, 0.1)

    def head(instances, pairs):
        """Predict by score."""
        return instances.scores[:, None] / (instances.scores[:, None] + instances.scores)

    prediction = make_prediction(*zip((*BACK, 0.6), (*FRONT, 0.8), false, unused, strict=True))
    calibration.add(prediction, Painted().targets(2), FusionConfig(score_threshold=0.5), head)
    assert torch.allclose(calibration.true[0], torch.tensor([[0.8 / 1.4, 0.6 / 1.4]]))
    assert torch.allclose(calibration.false[0], torch.tensor([[0.4, 0.6]]))
    text = "\n".join(calibration.describe())
    assert "| 0.5-0.6 | 1 | 0.57 | 1.00 |" in text
    assert "expected calibration error 0.429" in text
