"""Logging to Weights & Biases and MLflow without a network."""

import json
import sys

import pytest

from refine.errors import RefineError
from refine.training import services
from refine.training.config import LogConfig
from refine.training.logs import RunLog

SETTINGS = {"optim": {"lr": 0.02}, "seed": 0}


def log(out, service):
    """Log two updates and an evaluation in two runs of one folder, of which the second resumes the first."""
    config = LogConfig(tensorboard=False, progress=False, to=[service])
    values = {"loss": 2.0, "lr": 0.1, "images_per_second": 3.0}
    with RunLog(out, config, 0, 3, True, False, SETTINGS) as first:
        first.scalars(1, "train", values)
    with RunLog(out, config, 1, 3, True, False, SETTINGS) as second:
        second.scalars(2, "train", values | {"loss": 1.0})
        second.scalars(2, "val", {"PQ": 0.25, "SQ": float("nan")})


def test_mlflow(tmp_path, monkeypatch):
    tracking = pytest.importorskip("mlflow.tracking")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # set by the log; undone after the test
    log(tmp_path / "run", "mlflow")
    client = tracking.MlflowClient((tmp_path / "run" / "mlflow").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("refine").experiment_id])
    assert run.data.params == {"optim.lr": "0.02", "seed": "0"}
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(1, 2.0), (2, 1.0)]
    assert run.data.metrics["val/PQ"] == 25.0
    assert "val/SQ" not in run.data.metrics
    assert run.info.status == "FINISHED"


def test_wandb(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    log(tmp_path / "run", "wandb")
    wandb.teardown()  # as at the end of the process: writes what is left
    number = (tmp_path / "run" / "run_id").read_text().strip()
    records = b"".join(path.read_bytes() for path in sorted((tmp_path / "run").glob("wandb/offline-run-*/*.wandb")))
    for word in (number, "train/loss", "val/PQ", "optim"):
        assert word.encode() in records


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    for name, package, extra in (("wandb", "wandb", "wandb"), ("mlflow", "mlflow.tracking", "mlflow")):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(RefineError, match=rf"log.to {name} needs the package .*\[{extra}\]"):
                services.SERVICES[name](tmp_path, {})


def test_the_lines_of_the_log_are_the_same(tmp_path):
    config = LogConfig(tensorboard=False, progress=False)
    with RunLog(tmp_path, config, 0, 1, True, False, SETTINGS) as run:
        run.scalars(1, "val", {"PQ": 0.25})
    assert json.loads((tmp_path / "log.jsonl").read_text()) == {"step": 1, "group": "val", "PQ": 0.25}
    assert not (tmp_path / "run_id").exists()
