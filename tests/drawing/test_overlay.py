"""Overlays: pixel values, positions of names, and colours of classes."""

import tracemalloc

import numpy as np
import pytest
import torch

from refine.drawing import overlay as module
from refine.drawing.overlay import MAX_LETTERS, class_colors, overlay, segment_colors, short_name
from refine.structures import Categories, Category, PanopticResult, Segment

CATEGORIES = Categories(
    [
        Category(1, "disc", True, (220, 20, 60)),
        Category(2, "haze", False, (90, 200, 90)),
        Category(3, "moss", False, (70, 130, 180)),
    ]
)


def _result(ids: np.ndarray, classes: dict[int, int], categories: Categories = CATEGORIES) -> PanopticResult:
    segments = []
    for number, category_id in classes.items():
        y, x = np.nonzero(ids == number)
        box = (int(x.min()), int(y.min()), int(np.ptp(x)) + 1, int(np.ptp(y)) + 1)
        isthing = categories[categories.index(category_id)].isthing
        segments.append(Segment(number, category_id, isthing, 0.9 if isthing else None, len(x), box))
    return PanopticResult(torch.from_numpy(ids), segments, categories)


@pytest.fixture
def scene() -> tuple[torch.Tensor, PanopticResult]:
    """Noise image, and a result with void, two adjacent stuff classes and two adjacent things."""
    ids = np.zeros((90, 120), np.int32)
    ids[10:, :60], ids[10:, 60:] = 7, 9
    ids[30:60, 20:50], ids[30:60, 50:70] = 3, 500
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 90, 120), np.uint8))
    return image, _result(ids, {3: 1, 500: 1, 7: 2, 9: 3})


def test_fills_and_outlines(scene) -> None:
    """Fills have the stated opacity; only things have an outline, in their colour and on their own pixels."""
    image, result = scene
    drawn = overlay(image, result, labels=False, alpha=0.5).permute(1, 2, 0).numpy()
    pixels, ids = image.permute(1, 2, 0).numpy().astype(float), result.segment_ids.numpy()
    colors = segment_colors(result)
    assert (colors[0] != colors[1]).any()
    expected = pixels * 0.65
    for segment, color in zip(result.segments, colors, strict=True):
        weight = 0.5 if segment.isthing else 0.4
        expected[ids == segment.id] = (pixels * (1 - weight) + color * weight)[ids == segment.id]
    inner = np.zeros(ids.shape, bool)
    inner[33:57, 23:47] = inner[33:57, 53:67] = True
    stuff = (ids != 3) & (ids != 500)
    np.testing.assert_allclose(drawn[inner | stuff], expected[inner | stuff], atol=1.5)
    for segment, color in zip(result.segments[:2], colors, strict=False):
        x = segment.bbox[0]
        np.testing.assert_allclose(drawn[35:55, x], np.broadcast_to(color, (20, 3)), atol=8)


def test_bands_leave_no_seam(scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "line_width", lambda size: 5)
    monkeypatch.setattr(module, "BAND", 1000)
    whole = overlay(*scene)
    for band in (1, 7, 64):
        monkeypatch.setattr(module, "BAND", band)
        assert torch.equal(overlay(*scene), whole)


def test_names_hide_no_small_thing() -> None:
    """Small things lie in the middle of a large one, where its name would be written."""
    ids = np.full((300, 400), 1, np.int32)
    ids[100:200, 100:300] = 2
    ids[146:154, 196:204], ids[140:146, 150:156] = 3, 4
    result = _result(ids, {1: 2, 2: 1, 3: 1, 4: 1})
    image = torch.full((3, 300, 400), 128, dtype=torch.uint8)
    changed = (overlay(image, result) != overlay(image, result, labels=False)).any(0).numpy()
    assert changed[100:200, 100:300].sum() < 0.35 * 100 * 200
    assert changed.sum() > 100
    for number in (3, 4):
        assert changed[ids == number].mean() <= 0.1


def test_names_at_the_border_or_too_long_for_the_image() -> None:
    for size in ((1, 1), (5, 300), (300, 5), (40, 40)):
        result = _result(np.ones(size, np.int32), {1: 1})
        assert overlay(torch.zeros(3, *size, dtype=torch.uint8), result).shape == (3, *size)


def test_long_names_are_truncated() -> None:
    assert short_name("traffic light") == "traffic light"
    assert short_name("two\nlines") == "two lines"
    assert len(short_name("a" * 10**6)) == MAX_LETTERS
    categories = Categories([Category(1, "a" * 10**6, True, (9, 9, 9)), Category(2, "b" * 10**6, False, (9, 9, 9))])
    ids = np.repeat(np.array([[1, 2]], np.int32), [200, 200], 1).repeat(200, 0)
    image = torch.zeros(3, 200, 400, dtype=torch.uint8)
    assert (overlay(image, _result(ids, {1: 1, 2: 2}, categories)) > 0).any()


def test_colors_of_classes() -> None:
    """Colours of the data set are used; without them, sky is blue and plants are green."""
    entries = [{"id": n, "name": name, "isthing": 0} for n, name in enumerate(("sky", "plants", "gravel"), 1)]
    made_up = Categories.from_json(entries)
    sky, plants, gravel = class_colors(made_up)
    assert max(sky) == sky[2]
    assert max(plants) == plants[1]
    assert gravel == made_up[2].color
    entries[0]["color"] = [1, 2, 3]
    assert class_colors(Categories.from_json(entries))[0] == (1, 2, 3)


def test_memory() -> None:
    ids = np.repeat(np.arange(1, 5, dtype=np.int32), 500)[:, None].repeat(1500, 1)
    image, result = torch.zeros(3, 2000, 1500, dtype=torch.uint8), _result(ids, {1: 1, 2: 1, 3: 2, 4: 3})
    tracemalloc.start()
    overlay(image, result)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 7 * 2000 * 1500  # 3 bytes per pixel for the result, 2 for the map, and the bands and names


def test_sizes_must_agree(scene) -> None:
    with pytest.raises(ValueError, match="overlay: image"):
        overlay(scene[0][:, 1:], scene[1])
