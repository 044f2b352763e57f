"""`refine explain` with the shipped model on a real micrograph, and with a network that has all heads."""

import json
import shutil
from typing import get_args

import pytest
import torch
from helpers.tiny_network import tiny_config
from mahotas.demos import load
from PIL import Image

from refine.checkpoint.folder import SavedModel, save_model
from refine.cli.main import main
from refine.data.synthetic.scenes import make_scene
from refine.drawing.explanation import GAP, WIDTH
from refine.fusion import FusionConfig, Method
from refine.modeling.config import OcclusionConfig
from refine.modeling.model import PanopticModel
from refine.structures import Categories, Category


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Folder of a small network with all heads and random weights, whose instances overlap everywhere."""
    torch.manual_seed(0)
    config = tiny_config(
        1, {"max_detections": 12}, occlusion=OcclusionConfig(conv_channels=8, fc_channels=8), ranking=True
    )
    categories = Categories([Category(n, name, n < 3, (60 * n, 90, 90)) for n, name in enumerate("abcd", 1)])
    model = PanopticModel(config, categories.num_things, len(categories)).eval()
    fusion = FusionConfig(stuff_area=16, score_threshold=0.05)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_model(folder, SavedModel(model, categories, test_size=(64, 96), fusion=fusion, data="nothing"))
    return str(folder)


@pytest.fixture
def image_path(tmp_path):
    path = tmp_path / "scene.png"
    Image.fromarray(make_scene(0, 0, (64, 96)).image).save(path)
    return path


def test_the_shipped_model(tmp_path, capsys):
    nuclei, out = tmp_path / "nuclei.png", tmp_path / "out"
    Image.fromarray(load("nuclear")[400:720, 860:1340]).save(nuclei)
    assert main(["explain", str(nuclei), "-o", str(out), "--device", "cpu", "--checkpoint", "nuclei"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(
        "left out: srm, ocfusion, strong, soe, because the model has no ranking and no occlusion"
    )
    assert "--optim.train_only '[ranking, occlusion]'" in lines[0]
    record = json.loads((out / "nuclei.json").read_text())
    assert (record["file_name"], record["size"]) == ("nuclei.png", [320, 480])
    assert (record["methods"], record["left_out"]) == (["heuristic", "shr"], ["srm", "ocfusion", "strong", "soe"])
    assert len(record["instances"]) > 3
    assert (
        f"nuclei.png: instances: {len(record['instances'])}, contested pixels: {record['contested']}, " in lines[1]
    )
    with Image.open(out / "nuclei.png") as sheet:
        assert sheet.width == 3 * WIDTH + 4 * GAP
    assert sorted(path.name for path in out.iterdir()) == ["nuclei.json", "nuclei.png"]


def test_a_model_with_every_head(checkpoint, image_path, tmp_path, capsys):
    words = ["explain", str(image_path), "-o", str(tmp_path / "out"), "--checkpoint", checkpoint]
    assert main(words) == 0
    assert "left out" not in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "scene.json").read_text())
    assert record["methods"] == list(get_args(Method))
    decided = [pair for pair in record["pairs"] if pair["decided"]]
    assert decided
    assert all(0 < value < 1 for pair in decided for value in pair["O"] + pair["soft_O"])
    assert all(pair["front"]["ocfusion"] == pair["front"]["strong"] for pair in decided)
    for pair in decided:
        assert pair["front"]["soe"] == pair["ij"[pair["soft_O"][0] < pair["soft_O"][1]]]


def test_a_higher_threshold_keeps_fewer(checkpoint, image_path, tmp_path):
    counts = []
    for threshold in ("0.05", "0.99"):
        words = ["explain", str(image_path), "-o", str(tmp_path / threshold), "--score-threshold", threshold]
        assert main([*words, "--checkpoint", checkpoint]) == 0
        counts.append(len(json.loads((tmp_path / threshold / "scene.json").read_text())["instances"]))
    assert counts[0] > counts[1]


def test_a_broken_image_does_not_affect_the_others(checkpoint, image_path, tmp_path, capsys):
    broken, out = tmp_path / "broken.png", tmp_path / "out"
    shutil.copy(image_path, broken)
    assert main(["explain", str(broken), "-o", str(out), "--checkpoint", checkpoint]) == 0  # must not remain
    capsys.readouterr()
    broken.write_bytes(image_path.read_bytes()[:-200])
    sources = [str(image_path), str(broken)]
    assert main(["explain", *sources, "-o", str(out), "--checkpoint", checkpoint]) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    errors = [line for line in error.splitlines() if line.startswith("refine: error: ")]
    assert str(broken) in errors[0]
    assert errors[1].startswith("refine: error: 1 of 2 images failed; the explanations")
    assert sorted(path.name for path in out.iterdir()) == ["scene.json", "scene.png"]


def test_images_are_not_overwritten(checkpoint, image_path, capsys):
    before = image_path.read_bytes()
    assert main(["explain", str(image_path), "-o", str(image_path.parent), "--checkpoint", checkpoint]) == 1
    assert "is also an input file" in capsys.readouterr().err
    assert image_path.read_bytes() == before
    assert [path.name for path in image_path.parent.iterdir()] == ["scene.png"]


def test_invalid_options_are_reported(checkpoint, image_path, tmp_path, capsys):
    arguments = ["explain", str(image_path), "-o", str(tmp_path / "out"), "--checkpoint"]
    assert main([*arguments, "nowhere"]) == 1
    assert "nowhere: no such model" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, checkpoint, "--score-threshold", "1.5"])
    assert "--score-threshold: '1.5': expected a number from 0 to 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_possibly_missed_objects_are_noted(checkpoint, tmp_path, capsys):
    path = tmp_path / "large.png"
    Image.fromarray(make_scene(0, 0, (160, 240)).image).save(path)
    words = ["explain", str(path), "-o", str(tmp_path / "out"), "--device", "cpu", "--checkpoint", checkpoint]
    assert main(words) == 0
    notes = capsys.readouterr().err
    assert "large.png is full: 12 objects were found" in notes
    assert "give refine predict --max-detections 48" in notes
    assert "large.png is reduced to less than 50%" in notes
