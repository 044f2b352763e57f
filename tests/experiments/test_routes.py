"""Routes of the exchange: effects of each change, and attribution of gradients."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers.tiny_run import tiny_model, tiny_run, write_dataset

from refine.checkpoint.folder import SavedModel, save_model
from refine.cli.main import main
from refine.config import to_mapping
from refine.data.build import build_dataset
from refine.errors import RefineError
from refine.experiments.routes import (
    _altered_outputs,
    _at_network_size,
    _mean_flow,
    _measure,
    gradient_flow,
    measure_routes,
    route_table,
    true_inputs,
)
from refine.files import read_json, write_json
from refine.inference.predictor import Predictor
from refine.modeling.model import PanopticModel


@pytest.fixture
def dataset(tmp_path):
    write_dataset(tmp_path / "data", count=3)
    return build_dataset(tiny_run(tmp_path / "data", tmp_path / "x").data.train)


def make_predictor(dataset, iterations=1, **ibpp) -> Predictor:
    config = tiny_model(iterations)
    model = PanopticModel(replace(config, ibpp=replace(config.ibpp, **ibpp)), 2, 3)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.ibpp.parameters():  # every route matters
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    model.box_heads.config.score_threshold = 0.0
    return Predictor(SavedModel(model.eval(), dataset.categories, test_size=(64, 96)), device="cpu")


@pytest.mark.parametrize("exchange", ["paper", "balanced"])
def test_each_change_affects_the_heads_of_its_route(dataset, exchange):
    predictor = make_predictor(dataset, exchange=exchange)
    model = predictor.model
    batch, targets = _at_network_size(predictor, *dataset[0], 0)
    outputs = dict(_altered_outputs(model, batch, targets, 0.0))
    plain = outputs["as it is"]
    assert len(plain.instances) > 1
    for name, output in outputs.items():
        assert output.instances.boxes.equal(plain.instances.boxes)
        same = (
            output.instances.roi_masks.equal(plain.instances.roi_masks),
            output.sem_logits.equal(plain.sem_logits),
        )
        # With one iteration the canvas is too late for the masks; these feed the canvas.
        assert same == ((True, True) if name == "as it is" else (name.startswith("canvas"), False)), name
    (after,) = model.predict(batch)
    assert after.sem_logits.equal(plain.sem_logits)  # nothing is left behind


def test_unnamed_stuff_counts_as_void(dataset):
    predictor = make_predictor(dataset)
    table = route_table(predictor.model)
    image, truth = dataset[0]
    unnamed = replace(truth, labels=truth.labels.masked_fill(truth.labels == 2, 3))
    found = []
    for segments in (unnamed, truth.named(2)):
        data = [(image, segments)]
        numbers = {name: metrics for name, (metrics, _) in _measure(predictor, data, table, 1).items()}
        assert "PQ_stuff" not in numbers["as it is"]  # undefined without stuff; JSON has no NaN
        found.append((numbers, _mean_flow(predictor, data, 1)))
    assert found[0] == found[1]


@pytest.mark.parametrize("exchange", ["paper", "balanced"])
def test_the_truth_on_the_canvas(dataset, exchange):
    predictor = make_predictor(dataset, exchange=exchange)
    batch, targets = _at_network_size(predictor, *dataset[0], 0)
    (plain,) = predictor.model.predict(batch)
    truth = true_inputs(predictor.model, batch, targets, plain.instances, plain.sem_logits[None])
    gain = predictor.model.ibpp.gain
    assert gain == (32**0.5 if exchange == "balanced" else 1)
    for c in range(2):
        drawn = (targets.sem_seg == c).float()[None, None]  # rectangles do not overlap here
        torch.testing.assert_close(truth.canvas[:, c], gain * F.avg_pool2d(drawn, 4)[:, 0])
    assert truth.p_sem.shape == (len(plain.instances), 3, 14, 14)
    if exchange == "balanced":
        assert 0 <= truth.p_sem.min() <= truth.p_sem.max() <= gain * 1.0001


def test_gradients_of_the_other_branch(dataset):
    predictor = make_predictor(dataset, iterations=2)
    batch, targets = _at_network_size(predictor, *dataset[0], 0)
    flow = gradient_flow(predictor.model, batch, [targets])
    assert list(flow) == ["P_sem^(0)", "P_sem^(1)", "P_sem^(2)", "m^(1)", "m^(2)"]
    assert flow["P_sem^(2)"] == 0  # no mask comes after it
    assert all(0 < share < 1 for name, share in flow.items() if name != "P_sem^(2)")
    predictor.model.ibpp.config.detach = True
    assert set(gradient_flow(predictor.model, batch, [targets]).values()) == {0.0}


def test_table_of_two_checkpoints(dataset, tmp_path, capsys):
    for seed in range(2):
        predictor = make_predictor(dataset, routes=["p_sem"])
        save_model(tmp_path / f"m{seed}", SavedModel(predictor.model, dataset.categories, test_size=(64, 96)))
    base = tiny_run(tmp_path / "data", tmp_path / "x")
    base.data.val = base.data.train
    write_json(tmp_path / "base.json", to_mapping(base))
    runs = [str(tmp_path / "m0"), str(tmp_path / "m1")]
    words = ["--data", str(tmp_path / "base.json"), "--out", str(tmp_path / "out")]
    main(["reproduce", "routes", *words, "--checkpoint", *runs])
    content = read_json(tmp_path / "out/routes_base.json")
    assert list(content["rows"]) == ["as it is", "p_sem empty", "p_sem shuffled", "p_sem oracle"]
    assert [run["images"] for run in content["rows"]["as it is"]] == [3, 3]
    text = (tmp_path / "out/routes_base.md").read_text()
    assert "| P_sem^(0) | mask losses, through p_sem |" in text
    assert "written to" in capsys.readouterr().out


def test_networks_of_different_routes_are_refused(dataset, tmp_path):
    for n, routes in enumerate((["p_sem"], ["canvas"])):
        predictor = make_predictor(dataset, routes=routes)
        save_model(tmp_path / f"m{n}", SavedModel(predictor.model, dataset.categories, test_size=(64, 96)))
    with pytest.raises(RefineError, match=r"m1: has other routes than .*m0"):
        measure_routes([str(tmp_path / "m0"), str(tmp_path / "m1")], dataset, tmp_path / "out", device="cpu")


def test_networks_without_exchange_are_rejected(dataset, tmp_path):
    save_model(tmp_path / "m", SavedModel(PanopticModel(tiny_model(0), 2, 3), dataset.categories))
    with pytest.raises(RefineError, match=r"m: has no iterations \(T = 0\)"):
        measure_routes([str(tmp_path / "m")], dataset, tmp_path / "out")
