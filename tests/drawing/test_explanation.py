"""Explanation sheets: marks, directions of arrows, and unusual images and names."""

import numpy as np
import pytest
import torch
from helpers.explained import (
    CATEGORIES,
    SIZE,
    blank_image,
    explanation_of,
    occlusion,
    overlapping,
    prediction,
)
from matplotlib.patches import FancyArrowPatch

from refine.drawing import explanation as module
from refine.drawing.explanation import GAP, MARK, WIDTH, apart, explanation_sheet
from refine.fusion import FusionConfig
from refine.structures import VOID, Categories, Category, Prediction

THREE = 3 * WIDTH + 4 * GAP


@pytest.fixture
def raw():
    return overlapping()


def marked(sheet):
    color = torch.tensor(MARK)[:, None, None] * 255
    return bool(((sheet - color).abs() < 2).all(0).any())


def test_sheet_marks_what_differs(raw):
    """The last of three columns is the rule's; it is marked only where the rule differs from the heuristic."""
    sheets = [
        explanation_sheet(
            blank_image(), explanation_of(raw, ["heuristic", "soe"], FusionConfig(sigma=sigma), occlusion)
        )
        for sigma in (25.0, 2.5)
    ]
    for sheet in sheets:
        assert (sheet.dtype, sheet.shape[0], sheet.shape[2]) == (torch.uint8, 3, THREE)
    middle, third = 2 * (WIDTH + GAP), sheets[1].shape[1] // 3
    assert not marked(sheets[0])
    assert not marked(sheets[1][..., :middle])
    assert marked(sheets[1][:, :third, middle:])  # the result
    assert marked(sheets[1][:, third : 2 * third, middle:])  # the decisions
    assert not marked(sheets[1][:, 2 * third + GAP :])


@pytest.mark.parametrize("erased", [False, True])
def test_sheet_marks_what_is_erased(erased):
    confidence = torch.full(SIZE, 0.8)
    if erased:
        confidence[:, 10:] = 0.2
    sem_seg = torch.full(SIZE, 2)
    sem_seg[:, 10:], sem_seg[0] = 3, VOID
    none = torch.zeros(0, *SIZE, dtype=torch.bool)
    explanation = explanation_of(prediction(none, [], [], sem_seg, confidence), ["heuristic", "shr"])
    assert marked(explanation_sheet(blank_image(), explanation)) == erased


def test_arrows_point_from_front_to_back(raw, monkeypatch):
    """The one contested pair: 1 lies in front of 2 by score, 2 in front of 1 by occlusion."""
    drawn = []
    monkeypatch.setattr(module, "_render", lambda rows, size: drawn.extend(rows[1][1:]))
    explanation_sheet(blank_image(), explanation_of(raw, ["heuristic", "soe"], occlusion=occlusion))
    ends = []
    for draw in drawn:
        axes = module.Figure().add_subplot(xlim=(0, 600), ylim=(225, 0))
        module.FigureCanvasAgg(axes.figure)
        draw(axes)
        axes.figure.canvas.draw()
        numbers = {t.get_text(): np.array(t.xy) for t in axes.texts if t.get_text() in ("1", "2")}
        arrows = [t for t in axes.texts if isinstance(t.arrow_patch, FancyArrowPatch)]
        assert len(numbers) == len(arrows) == 2  # each arrow has a rim, which is an arrow too
        assert len({(t.xyann, t.xy) for t in arrows}) == 1
        ends.append(
            [next(n for n, at in numbers.items() if (at == end).all()) for end in (arrows[0].xyann, arrows[0].xy)]
        )
    assert ends == [["1", "2"], ["2", "1"]]


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_to_decide(count, raw):
    best = Prediction(raw.instances[torch.arange(4 - count, 4)], raw.sem_seg, raw.sem_confidence)
    explanation = explanation_of(best, ["heuristic", "srm"], ranking=lambda instances: instances.scores)
    assert not marked(explanation_sheet(blank_image(), explanation))


def test_ocfusion_and_strong_share_a_column(raw):
    explanation = explanation_of(raw, ["heuristic", "ocfusion", "strong"], occlusion=occlusion)
    assert explanation_sheet(blank_image(), explanation).shape[2] == THREE


@pytest.mark.parametrize("size", [(1, 1), (300, 2), (2, 300), (1, 2000)])
def test_odd_sizes_and_equal_masks(size):
    masks = torch.ones(45, *size, dtype=torch.bool)
    explanation = explanation_of(
        prediction(masks, [0.9 - 0.001 * n for n in range(45)], [0] * 45), ["heuristic", "shr"]
    )
    assert explanation_sheet(blank_image(size), explanation).shape[2] == THREE


def test_any_name(raw):
    """Names with dollars, brackets or characters missing in the font, and long names, are drawn as text."""
    for name in ("$x", "$\\frac$", "[tumor]", "核", "a" * 10**6):
        categories = Categories([Category(10, name, True, (9, 9, 9)), *list(CATEGORIES)[1:]])
        explanation = explanation_of(raw, ["heuristic"], categories=categories)
        assert explanation_sheet(blank_image(), explanation).shape[2] == THREE


def test_an_image_of_another_size_is_an_error(raw):
    with pytest.raises(ValueError, match=r"image \(6, 17\), explanation \(6, 16\)"):
        explanation_sheet(blank_image((6, 17)), explanation_of(raw, ["heuristic"]))


def test_points_are_moved_apart():
    points = np.array([[50.0, 50], [50, 50], [52, 51], [200, 50]])
    moved = apart(points, 20)
    distance = np.linalg.norm(moved[:, None] - moved, axis=2) + 1000 * np.eye(4)
    assert distance.min() > 19
    np.testing.assert_array_equal(moved[3], points[3])
    assert apart(np.zeros((0, 2)), 20).shape == (0, 2)
