import io

import pytest
from PIL import Image

from refine.drawing.curves import draw_curves, to_png


def update(step, **losses):
    return {"step": step, "group": "train", "lr": 0.1, "gradient_norm": 1.0, **losses}


LOG = [
    {"step": 0, "group": "message", "text": "started"},
    update(
        10, loss=3.0, loss_rpn_objectness=0.2, loss_rpn_box=0.1, loss_mask_0=0.9, loss_mask_1=0.8, loss_sem_0=1.0
    ),
    update(
        20, loss=2.0, loss_rpn_objectness=0.1, loss_rpn_box=0.1, loss_mask_0=0.7, loss_mask_1=0.5, loss_sem_0=None
    ),
    {"step": 20, "group": "val", "PQ": 0.25, "SQ": 0.5},
]


def lines_of(figure):
    return {
        axes.get_title(): {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.lines}
        for axes in figure.axes
    }


def test_panels_of_one_run():
    (lines,) = [{title: next(iter(run.values())) for title, run in lines_of(draw_curves({"": [LOG]})).items()}]
    assert lines == {
        "loss": [(10, 3.0), (20, 2.0)],
        "proposals": [(10, pytest.approx(0.3)), (20, pytest.approx(0.2))],
        "masks": [(10, 0.8), (20, 0.5)],  # the last iteration
        "semantic map": [(10, 1.0)],  # null is NaN
        "PQ on the validation data (%)": [(20, 25.0)],
    }


def test_mean_and_range_over_seeds_and_a_legend():
    other = [update(10, loss=5.0), update(20, loss=4.0), update(30, loss=1.0)]
    figure = draw_curves({"T = 0": [LOG, other], "T = 1": [other]})
    (axes,) = [axes for axes in figure.axes if axes.get_title() == "loss"]
    assert lines_of(figure)["loss"]["T = 0"] == [(10, 4.0), (20, 3.0), (30, 1.0)]
    assert lines_of(figure)["loss"]["T = 1"] == [(10, 5.0), (20, 4.0), (30, 1.0)]
    (band,) = axes.collections
    assert {(x, y) for x, y in band.get_paths()[0].vertices.tolist()} >= {(10, 3), (10, 5), (20, 2), (20, 4)}
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["T = 0", "T = 1"]


def test_a_run_without_updates_is_an_empty_image():
    assert Image.open(io.BytesIO(to_png(draw_curves({"": [LOG[:1]]})))).size == (300, 240)
