"""Model, images and results that the tests of `refine predict` share."""

import numpy as np
import pytest
import torch
from helpers.predict_runs import CATEGORIES, files, run
from helpers.tiny_network import tiny_config
from PIL import Image

from refine.checkpoint.folder import SavedModel, save_model
from refine.fusion.config import FusionConfig
from refine.modeling.model import PanopticModel


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Folder of a small network with random weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    model = PanopticModel(tiny_config(0, {"max_detections": 5}), 1, 2).eval()
    save_model(
        folder, SavedModel(model, CATEGORIES, (64, 96), fusion=FusionConfig(stuff_area=16, score_threshold=0.1))
    )
    return str(folder)


@pytest.fixture
def images(tmp_path):
    """Folder with four images, some with equal names in different subfolders."""
    rng = np.random.default_rng(0)
    for name in ("x/0.png", "x/1.jpg", "y/0.png", "y/deep/0.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(path)
    return tmp_path / "images"


@pytest.fixture
def whole(checkpoint, images, tmp_path, capsys):
    """Hashes of the files that an uninterrupted run writes."""
    assert run(checkpoint, images, tmp_path / "whole", "--recursive") == 0
    capsys.readouterr()
    return files(tmp_path / "whole")
