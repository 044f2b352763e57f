"""Fusion head of spatial ranking."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers.contested import BACK, FRONT, SIZE, THINGS, make_instances, make_targets

from refine.modeling.ranking import SpatialRanking, ranking_loss
from refine.ops.masks import paste_masks
from refine.structures import Instances


def test_ranking_by_hand():
    head = SpatialRanking(THINGS)
    instances = make_instances([BACK, FRONT, [12, 12, 36, 36], [38, 38, 40, 40]], [0, 1, 1, 2])
    canvas = torch.zeros(THINGS, *SIZE)
    canvas[0, :24, :24], canvas[1, 12:36, 12:36], canvas[2, 38:, 38:] = 1, 1, 1
    padded = F.pad(canvas[None], (3, 3, 3, 3))
    rows = F.conv2d(padded, head.horizontal.weight, head.horizontal.bias)[:, :, 3:-3]
    rows = F.pad(rows, (0, 0, 3, 3))
    probability = F.conv2d(rows, head.vertical.weight, head.vertical.bias)[0].softmax(0)
    shared = probability[:, 12:24, 12:24].mean((1, 2))
    expected = torch.stack([shared[0], shared[1], shared[1], torch.tensor(0.0)])
    torch.testing.assert_close(head.predict(instances), expected)
    assert head.predict(make_instances([], [])).shape == (0,)


@pytest.mark.parametrize("full", [False, True])
def test_ranking_is_computed_on_the_resized_image(full):
    """Scores do not change if the original image has 0.6 times or twice the size."""
    torch.manual_seed(0)
    head = SpatialRanking(THINGS)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    boxes = torch.tensor([[4.0, 4, 34, 34], [20, 20, 52, 48], [10, 24, 44, 58]])

    def instances(scale):
        size = (round(60 * scale), round(60 * scale))
        some = Instances(size, boxes * scale, torch.ones(3), torch.arange(3), roi_masks=torch.ones(3, 28, 28))
        masks = paste_masks(some.roi_masks, some.boxes, size)
        return replace(some, roi_masks=None, masks=masks) if full else some

    trained = head.predict(instances(1))
    for scale in (0.6, 2):
        torch.testing.assert_close(head.predict(instances(scale), (60, 60)), trained, atol=0.02, rtol=0)
        assert (head.predict(instances(scale)) - trained).abs().max() > 0.02


def test_ranking_learns_the_class_in_front():
    head = SpatialRanking(THINGS)
    instances, targets = make_instances([BACK, FRONT], [0, 1]), make_targets([BACK, FRONT], [0, 1])
    optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
    for _ in range(40):
        loss = ranking_loss(head, [instances], [targets])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scores = head.predict(instances)
    assert scores[1] > 0.9 > 0.1 > scores[0]


def test_ranking_without_contested_pixels_has_no_loss():
    head = SpatialRanking(THINGS)
    loss = ranking_loss(
        head,
        [make_instances([BACK], [0]), make_instances([], [])],
        [make_targets([BACK], [0]), make_targets([], [])],
    )
    loss.backward()
    assert loss == 0
    assert all(p.grad is not None for p in head.parameters())
