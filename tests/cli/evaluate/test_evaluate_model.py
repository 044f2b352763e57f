"""`refine evaluate` of a model, on raw Cityscapes and COCO panoptic data."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.drawn_data import write_cityscapes, write_coco
from helpers.tiny_network import tiny_config

from refine.checkpoint.folder import SavedModel, load_model, save_model
from refine.cli.main import main
from refine.data.cityscapes import CATEGORIES
from refine.modeling.model import PanopticModel


@pytest.fixture
def folder(tmp_path):
    """Folder with a frame of road and one car, and a network that predicts road for every pixel."""
    values = np.full((64, 96), 7)
    values[8:24, 8:40] = 26001
    write_cityscapes(tmp_path / "data", values)
    config = tiny_config(0, {"num_convs": 0, "num_fcs": 1, "score_threshold": 0.99})
    model = PanopticModel(config, CATEGORIES.num_things, len(CATEGORIES)).eval()
    with torch.no_grad():
        model.semantic_head.predictor.weight.zero_()
        model.semantic_head.predictor.bias[CATEGORIES.index(7)] = 9
    save_model(tmp_path / "model", SavedModel(model, CATEGORIES, test_size=(64, 96), data="nothing"))
    return tmp_path


def test_pq_on_raw_cityscapes(folder, capsys):
    words = ["--checkpoint", folder / "model", "--cityscapes", folder / "data", "--out", folder / "r.json"]
    assert main(["evaluate", *map(str, words)]) == 0, capsys.readouterr().err
    result = json.loads((folder / "r.json").read_text())
    road = 64 * 96 - 16 * 32  # the predicted segment covers the whole frame
    assert result["per_class"]["7"]["pq"] == pytest.approx(road / (64 * 96))
    assert result["Things"] == {"pq": 0.0, "sq": 0.0, "rq": 0.0, "n": 1}


def test_possibly_missed_objects_are_noted(folder, capsys):
    words = ["--cityscapes", folder / "data", "--out", folder / "r.json", "--checkpoint"]
    assert main(["evaluate", *map(str, [*words, folder / "model"])]) == 0
    assert "reduced" not in capsys.readouterr().err
    save_model(folder / "small", replace(load_model(folder / "model"), test_size=(31, 96)))
    assert main(["evaluate", *map(str, [*words, folder / "small"])]) == 0
    assert "reduced to less than 50% of the size for the network" in capsys.readouterr().err


@pytest.mark.parametrize(
    "thresholds",
    [["--stuff-area", "100000"], ["--unknown-erasing", "--ue-threshold", "1"]],
    ids=["area", "erasing"],
)
def test_fusion_thresholds_are_applied(folder, capsys, thresholds):
    words = ["--checkpoint", folder / "model", "--cityscapes", folder / "data", "--out", folder / "r.json"]
    assert main(["evaluate", *map(str, words), *thresholds]) == 0, capsys.readouterr().err
    assert json.loads((folder / "r.json").read_text())["per_class"]["7"]["pq"] == 0


def test_fusion_options_need_a_checkpoint(capsys):
    files = ["--gt", "a", "--gt-dir", "b", "--pred", "c", "--pred-dir", "d", "--out", "r.json"]
    for rule in (["--sigma", "2"], ["--no-unknown-erasing"], ["--method", "shr"]):
        with pytest.raises(SystemExit) as stop:
            main(["evaluate", *files, *rule])
        assert stop.value.code == 2
        assert "need --checkpoint" in capsys.readouterr().err


def test_missing_instances_are_reported(tmp_path, capsys):
    data = write_coco(tmp_path / "data")
    words = ["--images", data.images, "--json", data.json, "--segments", data.segments]
    words += ["--checkpoint", "nuclei", "--instances", tmp_path / "instances.json", "--out", tmp_path / "r.json"]
    assert main(["evaluate", *map(str, words)]) == 1
    assert "instances.json" in capsys.readouterr().err


def test_cityscapes_and_coco_exclude_each_other(folder, capsys):
    words = ["evaluate", "--checkpoint", "x", "--cityscapes", "y", "--instances", "z", "--out", "r.json"]
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert "--cityscapes" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--exif", "shown"], ["--page", "1"], ["--channel", "1"], ["--range", "0,9"]])
def test_options_of_images_belong_to_coco_data(option, tmp_path, capsys):
    for name in ("images", "segments"):
        (tmp_path / name).mkdir()
    (tmp_path / "p.json").write_text("{}")
    paths = [f"--{name}={tmp_path / name}" for name in ("images", "segments")]
    words = ["evaluate", "--checkpoint", "no such model", f"--json={tmp_path / 'p.json'}", *paths]
    assert main([*words, "--out", str(tmp_path / "r.json"), *option]) == 1
    assert "no such model" in capsys.readouterr().err  # the options are no paths
    with pytest.raises(SystemExit):
        main(["evaluate", "--checkpoint", "nuclei", "--cityscapes", str(tmp_path), "--out", "r.json", *option])
    with pytest.raises(SystemExit):
        main(["check-data", "--cityscapes", str(tmp_path), "--split", "val", *option])
