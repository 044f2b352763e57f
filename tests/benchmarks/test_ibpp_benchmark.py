"""Work that benchmarks/ibpp.py gives to the networks, on a tiny one."""

import pytest
import torch
from helpers.programs import program
from helpers.tiny_run import tiny_model

from refine.modeling.mask_head import MaskHead
from refine.training.config import RunConfig


@pytest.fixture
def benchmark():
    with program("ibpp") as module:
        yield module


@pytest.mark.parametrize(("iterations", "masks"), [(0, 8), (1, 29)])
def test_masks_are_those_that_fusion_or_the_canvas_uses(benchmark, monkeypatch, iterations, masks):
    counts, project = [], MaskHead.project
    monkeypatch.setattr(
        MaskHead, "project", lambda self, x, *more: counts.append(len(x)) or project(self, x, *more)
    )
    monkeypatch.setattr(benchmark, "SIZE", (64, 96))
    predictor = benchmark.build(
        RunConfig(model=tiny_model(iterations)), benchmark.boxes_of_coco(), torch.device("cpu")
    )
    image = torch.zeros(3, 64, 96, dtype=torch.uint8)
    predictor(image)
    benchmark.with_all_masks(predictor, image)
    assert counts == [masks, 100]
