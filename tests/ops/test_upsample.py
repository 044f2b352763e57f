"""Tests of the special cases of ×4 upsampling; test_semantic.py tests the rest."""

import torch
import torch.nn.functional as F

from refine.ops.upsample import CELLS, ROWS, labels_and_confidence_x4


def test_many_cells_and_rows():
    # Exceed the mixed cells compared and the rows computed at a time, by no multiple of either.
    h, w = 3 * ROWS + 5, 160
    assert h * w > CELLS
    logits = torch.randn(4, h, w)
    labels, confidence = labels_and_confidence_x4(logits, (4 * h, 4 * w))
    expected, classes = F.interpolate(logits[None], scale_factor=4, mode="bilinear")[0].softmax(0).max(0)
    assert (labels != classes).float().mean() < 1e-4
    torch.testing.assert_close(confidence, expected, atol=1e-5, rtol=0)


def test_a_class_that_is_best_at_no_corner_can_win_in_between():
    # Class 2 is second best at both logits; the best class of each is far behind at the other.
    logits = torch.tensor([[[10.0, -10.0]], [[-10.0, 10.0]], [[8.0, 8.0]]])
    labels, _ = labels_and_confidence_x4(logits, (4, 8))
    # Class 0 at columns 2..5: 10 − 20·(1, 3, 5, 7)/8 = 7.5, 2.5, …: it exceeds 8 only at columns 0 and 1.
    assert labels[0].tolist() == [0, 0, 2, 2, 2, 2, 1, 1]


def test_steep_logits_stay_finite():
    # Denominators relative to the best corners underflow here.
    logits = torch.tensor([[[1000.0, -1000.0]], [[-1000.0, 1000.0]]])
    labels, confidence = labels_and_confidence_x4(logits, (4, 8))
    assert labels[0].tolist() == [0] * 4 + [1] * 4
    torch.testing.assert_close(confidence, torch.ones(4, 8))
    _, confidence = labels_and_confidence_x4(torch.tensor([[[1000.0, -600.0]], [[0.0, 0.0]]]), (4, 8))
    assert confidence[0].tolist() == [1, 1, 1, 1, 0.5, 1, 1, 1]  # 1000·3/8 − 600·5/8 = 0
