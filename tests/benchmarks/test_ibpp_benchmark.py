"""Work that benchmarks/ibpp.py gives to the networks, on a tiny one."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from helpers.tiny_run import tiny_model

from refine.modeling.mask_head import MaskHead
from refine.training.config import RunConfig

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("ibpp_benchmark", FOLDER / "ibpp.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("turns", None)


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
