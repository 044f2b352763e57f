"""`refine explain` on a real micrograph with the shipped model, and on a network with every head."""

import json
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
    """A small network with all heads that has learnt nothing: its instances overlap everywhere."""
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
def picture(tmp_path):
    path = tmp_path / "scene.png"
    Image.fromarray(make_scene(0, 0, (64, 96)).image).save(path)
    return path


def test_the_shipped_model(tmp_path, capsys):
    nuclei, out = tmp_path / "nuclei.png", tmp_path / "out"
    Image.fromarray(load("nuclear")[400:720, 860:1340]).save(nuclei)
    assert main(["explain", str(nuclei), "-o", str(out), "--device", "cpu", "--checkpoint", "nuclei"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(
        "left out: srm, ocfusion, strong, soe, for the model has no ranking and no occlusion"
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


def test_a_model_with_every_head(checkpoint, picture, tmp_path, capsys):
    words = ["explain", str(picture), "-o", str(tmp_path / "out"), "--checkpoint", checkpoint]
    assert main(words) == 0
    assert "left out" not in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "scene.json").read_text())
    assert record["methods"] == list(get_args(Method))
    asked = [pair for pair in record["pairs"] if pair["asked"]]
    assert asked
    assert all(0 < value < 1 for pair in asked for value in pair["O"] + pair["soft_O"])
    assert all(pair["front"]["ocfusion"] == pair["front"]["strong"] for pair in asked)
    for pair in asked:
        assert pair["front"]["soe"] == pair["ij"[pair["soft_O"][0] < pair["soft_O"][1]]]


def test_a_higher_threshold_keeps_fewer(checkpoint, picture, tmp_path):
    counts = []
    for threshold in ("0.05", "0.99"):
        words = ["explain", str(picture), "-o", str(tmp_path / threshold), "--score-threshold", threshold]
        assert main([*words, "--checkpoint", checkpoint]) == 0
        counts.append(len(json.loads((tmp_path / threshold / "scene.json").read_text())["instances"]))
    assert counts[0] > counts[1]


def test_what_cannot_be_explained(checkpoint, picture, tmp_path, capsys):
    """A broken image: the other is still explained."""
    broken, out = tmp_path / "broken.png", tmp_path / "out"
    broken.write_bytes(picture.read_bytes()[:-200])
    sources = [str(picture), str(broken)]
    assert main(["explain", *sources, "-o", str(out), "--checkpoint", checkpoint]) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    told = [line for line in error.splitlines() if line.startswith("refine: error: ")]
    assert str(broken) in told[0]
    assert told[1].startswith("refine: error: 1 of 2 images failed; the explanations")
    assert sorted(path.name for path in out.iterdir()) == ["scene.json", "scene.png"]


def test_pictures_are_not_overwritten(checkpoint, picture, capsys):
    before = picture.read_bytes()
    assert main(["explain", str(picture), "-o", str(picture.parent), "--checkpoint", checkpoint]) == 1
    assert "is also an input file" in capsys.readouterr().err
    assert picture.read_bytes() == before
    assert [path.name for path in picture.parent.iterdir()] == ["scene.png"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--score-threshold", "1.5"], "score_threshold is 1.5"),
        (["--checkpoint", "nowhere"], "nowhere: no such model"),
    ],
)
def test_options_that_cannot_be_used(words, told, checkpoint, picture, tmp_path, capsys):
    arguments = ["explain", str(picture), "-o", str(tmp_path / "out"), "--checkpoint", checkpoint, *words]
    assert main(arguments) == 1
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
