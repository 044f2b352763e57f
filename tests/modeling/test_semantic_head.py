"""Semantic heads, their loss and its labels."""

import pytest
import torch
import torch.nn.functional as F

from refine.modeling.config import IBPPConfig, SemanticHeadConfig
from refine.modeling.semantic_head import RefiningSemanticHead, SemanticHead, pad_labels, semantic_loss
from refine.structures import VOID

THINGS, CLASSES, CHANNELS = 3, 5, 8


def test_refining_semantic_head_is_one_convolution_over_the_concatenation():
    head = RefiningSemanticHead(IBPPConfig(sem_channels=8), "gn", THINGS, CHANNELS, CLASSES)
    canvas, features = torch.randn(2, THINGS, 9, 7), torch.randn(2, CHANNELS, 9, 7)
    weight = torch.cat([head.from_canvas.weight, head.from_features.weight], 1)
    x = F.relu(head.norm(F.conv2d(torch.cat([canvas, features], 1), weight, padding=1)))
    expected = head.predictor(head.convs(x))
    got = head.predictor(head(canvas, head.from_features(features)))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_restriction_to_present_classes_changes_nothing(layout):
    head = RefiningSemanticHead(IBPPConfig(sem_channels=8), "gn", THINGS, CHANNELS, CLASSES).to(
        memory_format=layout
    )
    canvas, features = torch.zeros(1, THINGS, 6, 6), head.from_features(torch.randn(1, CHANNELS, 6, 6))
    assert features.is_contiguous(memory_format=layout)
    canvas[:, 1] = torch.rand(6, 6)
    torch.testing.assert_close(head(canvas[:, 1:2], features, torch.tensor([1])), head(canvas, features))
    canvas.zero_()
    nothing = torch.zeros(0, dtype=torch.int64)
    torch.testing.assert_close(head(canvas[:, :0], features, nothing), head(canvas, features))


def test_the_balanced_canvas_is_added_after_the_norm():
    head = RefiningSemanticHead(IBPPConfig(sem_channels=8, exchange="balanced"), "gn", THINGS, CHANNELS, CLASSES)
    canvas, features = torch.randn(2, THINGS, 9, 7), torch.randn(2, CHANNELS, 9, 7)
    x = head.norm(head.from_features(features)) + head.from_canvas(canvas)
    expected = head.convs(F.relu(x))
    torch.testing.assert_close(head(canvas, head.from_features(features)), expected)
    present = torch.tensor([0, 2])
    canvas[:, 1] = 0
    expected = head(canvas, head.from_features(features))
    torch.testing.assert_close(head(canvas[:, present], head.from_features(features), present), expected)


def test_semantic_features_halve_no_detail():
    head = SemanticHead(SemanticHeadConfig(channels=8), 4, CLASSES)
    pyramid = [torch.randn(2, 4, 32 // 2**n, 24 // 2**n) for n in range(4)]
    assert [len(level) for level in head.levels] == [1, 1, 2, 3]
    assert head(head.features(pyramid)).shape == (2, CLASSES, 32, 24)


def test_semantic_loss_is_the_mean_over_labelled_pixels():
    logits = torch.randn(2, CLASSES, 2, 3)
    labels = torch.randint(0, CLASSES, (2, 8, 12))
    labels[0, :4] = VOID
    labels[1] = VOID
    full = F.interpolate(logits, scale_factor=4, mode="bilinear")
    expected = F.cross_entropy(full, labels, ignore_index=VOID)
    torch.testing.assert_close(semantic_loss(logits, labels, full_size=True), expected)
    coarse = F.cross_entropy(logits, labels[:, 2::4, 2::4], ignore_index=VOID)
    torch.testing.assert_close(semantic_loss(logits, labels, full_size=False), coarse)
    assert semantic_loss(logits, torch.full_like(labels, VOID), full_size=True) == 0


@pytest.mark.parametrize("full_size", [True, False])
def test_loss_of_unnamed_stuff(full_size):
    logits = torch.randn(1, CLASSES, 2, 3, requires_grad=True)
    labels = torch.randint(0, CLASSES, (1, 8, 12))
    labels[0, 4:] = CLASSES
    labels[0, :, :2] = VOID
    scaled, at = (
        (F.interpolate(logits, scale_factor=4, mode="bilinear"), labels)
        if full_size
        else (
            logits,
            labels[:, 2::4, 2::4],
        )
    )
    probability = scaled.softmax(1)
    first = CLASSES - 2
    terms = [
        -(probability[0, first:, y, x].sum() if at[0, y, x] == CLASSES else probability[0, at[0, y, x], y, x]).log()
        for y, x in torch.nonzero(at[0] != VOID).tolist()
    ]
    loss = semantic_loss(logits, labels, full_size, first)
    torch.testing.assert_close(loss, torch.stack(terms).mean())
    (gradient,) = torch.autograd.grad(
        semantic_loss(logits, torch.full_like(labels, CLASSES), full_size, first), logits
    )
    assert (gradient[:, :first] > 0).all()  # logits of things fall, those of all stuff rise
    assert (gradient[:, first:] < 0).all()


def test_pad_labels_marks_padding_as_void():
    padded = pad_labels([torch.zeros(2, 3, dtype=torch.int64), torch.ones(4, 2, dtype=torch.int64)], (4, 4))
    assert padded[0].tolist() == [[0, 0, 0, -1], [0, 0, 0, -1], [-1] * 4, [-1] * 4]
    assert padded[1].tolist() == [[1, 1, -1, -1]] * 4
