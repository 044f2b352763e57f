"""What the commands do with models of transformers: evaluate, explain, the page, and the table of rules."""

import json

import numpy as np
import pytest
import torch
from helpers import hub_models
from helpers.drawn_data import CATEGORIES, write_coco
from helpers.hub_models import saved

from refine.cli.main import main
from refine.data.coco_panoptic import CocoPanoptic
from refine.experiments.order import measure_order
from refine.inference.predictor import Predictor
from refine.networks.choice import ModelChoice
from refine.networks.load import load_network

LABELS = [category["name"] for category in CATEGORIES]
LOW = ["--score-threshold", "0.05", "--stuff-area", "0"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("models") / "tiny", hub_models.mask2former, LABELS)


@pytest.fixture(scope="module")
def semantic(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("models") / "segformer", hub_models.segformer, LABELS)


def run(*words):
    assert main([str(word) for word in words]) == 0


@pytest.mark.parametrize("method", ["model", "heuristic"])
@pytest.mark.parametrize("combined", [False, True], ids=["alone", "combined"])
def test_evaluate_equals_predict_and_evaluate_files(data, model, semantic, tmp_path, capsys, method, combined):
    if combined and method == "model":
        words = ["predict", data.images, "-o", tmp_path / "out", "--instances", model, "--semantic", semantic]
        assert main([*map(str, words), "--method", "model", "--categories", str(data.json)]) == 1
        assert "this model has no merge of its own; give one of heuristic, shr" in capsys.readouterr().err
        return
    options = ["--categories", data.json, "--method", method, "--device", "cpu", *LOW]
    options += ["--semantic", semantic] if combined else []
    run("predict", data.images, "--json", data.json, "-o", tmp_path / "out", "--checkpoint", model, *options)
    files = ["--pred", tmp_path / "out" / "panoptic.json", "--pred-dir", tmp_path / "out" / "panoptic"]
    run("evaluate", "--gt", data.json, "--gt-dir", data.segments, *files, "--out", tmp_path / "files.json")
    words = ["--images", data.images, "--json", data.json, "--segments", data.segments, "--worst", 0]
    run("evaluate", "--checkpoint", model, *words, *options, "--out", tmp_path / "model.json")
    expected, got = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("files", "model"))
    assert got["All"] == expected["All"]
    assert got["per_class"] == expected["per_class"]
    assert 0 <= got["AP"]["segm"]["AP"] <= 1


def test_precision_reaches_every_model_of_a_choice(data, model, semantic):
    choice = ModelChoice((str(model),), (str(semantic),), str(data.json))
    network = load_network(choice, device="cpu", precision="bf16")
    assert [part.autocast for part in network.networks] == [torch.bfloat16, torch.bfloat16]


def test_explain_leaves_out_the_own_merge(data, model, tmp_path, capsys):
    run("explain", data.images, "-o", tmp_path, "--checkpoint", model, "--categories", data.json, *LOW)
    (path,) = tmp_path.glob("*.json")
    assert json.loads(path.read_text())["methods"] == ["heuristic", "shr"]


def test_the_table_of_rules_has_the_own_merge(data, model, tmp_path):
    dataset = CocoPanoptic(data.images, data.json, data.segments)
    choice = ModelChoice((str(model),), categories=str(data.json))
    table, results, _ = measure_order([choice], dataset, tmp_path, device="cpu")
    names = [row.name for row in table.rows]
    assert names[:3] == ["heuristic", "SHR", "own merge"]
    assert all(0 <= results[name][0]["metrics"]["PQ"] <= 1 for name in names)


def test_the_page_offers_and_applies_the_own_merge(tmp_path):
    from PIL import Image

    from refine.serve.models import Models

    folder = saved(tmp_path / "coco", hub_models.mask2former)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    models = Models(str(folder), "cpu")
    upload = models.predict(tmp_path / "a.png", str(folder))
    predictor = models.predictor(str(folder))
    assert predictor.methods == ["heuristic", "shr", "model"]
    result = models.fuse(upload, "model", predictor.fusion)
    assert torch.equal(result.segment_ids, predictor(tmp_path / "a.png").segment_ids)
    assert upload.nbytes > 0


def test_the_page_takes_the_options_of_predict(data, model, semantic, monkeypatch, capsys):
    pytest.importorskip("gradio")
    from refine.serve import page

    served = []
    monkeypatch.setattr(page, "serve", lambda models, host, port, auth: served.append(models))
    run("serve", "--instances", model, "--semantic", semantic, "--categories", data.json, "--device", "cpu")
    (models,) = served
    assert models.names[0] == models.first == f"{model}, semantic {semantic}"
    path = next(data.images.iterdir())
    upload = models.predict(path, models.first)
    predictor = models.predictor(models.first)
    choice = ModelChoice((str(model),), (str(semantic),), str(data.json))
    expected = Predictor(choice, device="cpu")(path)
    assert torch.equal(models.fuse(upload, "heuristic", predictor.fusion).segment_ids, expected.segment_ids)
    run("serve", "--device", "cpu")
    assert served[1].first is None
    assert main(["serve", "--semantic", str(semantic)]) == 1
    assert "--checkpoint: choose a model" in capsys.readouterr().err
