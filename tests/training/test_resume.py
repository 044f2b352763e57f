"""Runs that are killed or stopped resume bit for bit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers.tiny_run import tiny_run, write_dataset
from safetensors.torch import load_file

from refine.errors import RefineError
from refine.files import read_json, write_json
from refine.training.logs import read_log
from refine.training.run_folder import last_checkpoint
from refine.training.train import train

SCRIPT = Path(__file__).parents[1] / "helpers" / "tiny_run.py"


def kill_at(step: int, folder: Path, out: Path) -> None:
    """Start a run in a separate process and send SIGKILL after it has logged this step."""
    process = subprocess.Popen([sys.executable, str(SCRIPT), str(folder), str(out)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        log = out / "log.jsonl"
        if log.is_file() and any(line["step"] >= step for line in read_log(log)):
            break
        time.sleep(0.01)
    assert process.poll() is None, "the run ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def assert_same_files(one: Path, other: Path) -> None:
    for name in ("model", "ema", "trainer"):
        a, b = load_file(one / f"{name}.safetensors"), load_file(other / f"{name}.safetensors")
        assert a.keys() == b.keys()
        different = [k for k in a if not torch.equal(a[k], b[k])]
        assert not different, f"{name}: {different[:3]}"


def test_killed_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "data")
    whole = train(tiny_run(folder, tmp_path / "whole"))

    killed = tmp_path / "killed"
    kill_at(7, folder, killed)
    assert last_checkpoint(killed) == killed / "checkpoints" / "step_000006"
    (killed / "checkpoints" / ".01234567.step_000009").mkdir()  # as if killed while writing
    resumed = train(tiny_run(folder, killed), resume=True)

    assert whole.name == resumed.name == "step_000012"
    assert_same_files(whole, resumed)
    assert sorted(p.name for p in (killed / "checkpoints").iterdir()) == ["step_000009", "step_000012"]
    lines = {out: read_log(tmp_path / out / "log.jsonl") for out in ("whole", "killed")}
    losses = {k: [(x["step"], x["loss"]) for x in v if x["group"] == "train"] for k, v in lines.items()}
    assert losses["whole"] == losses["killed"]
    assert [step for step, _ in losses["whole"]] == list(range(1, 13))


def test_stop_signal_writes_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_dataset(tmp_path / "data")
    config = tiny_run(folder, tmp_path / "out")
    config.optim.max_steps, config.log.checkpoint_every = 4, 100
    whole = train(config)

    from refine.training.update import TrainingModule

    update = TrainingModule.update

    def signalled(self, parts):  # type: ignore[no-untyped-def]
        if self.learner.progress.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(self, parts)

    config.out = str(tmp_path / "stopped")
    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "update", signalled)
        assert train(config).name == "step_000002"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert_same_files(whole, train(config, resume=True))


def test_an_evaluation_skipped_by_a_stop_is_made_up_for(tmp_path: Path) -> None:
    config = tiny_run(write_dataset(tmp_path / "data"), tmp_path / "out")
    config.data.val, config.eval.every, config.eval.max_images = config.data.train, 2, 2
    config.optim.max_steps, config.log.checkpoint_every = 4, 100
    whole = train(config)

    config.out = str(tmp_path / "stopped")
    for step in range(1, 5):  # a past deadline stops the run after one update
        stopped = train(config, resume=True, deadline=0.0)
        assert stopped.name == f"step_{step:06d}"
        assert read_json(stopped / "config.json")["metrics"] == {}
    texts = [line["text"] for line in read_log(tmp_path / "stopped" / "log.jsonl") if line["group"] == "message"]
    assert not any("PQ of both" in text for text in texts)
    for _ in range(2):  # the second has nothing left to do
        assert_same_files(whole, train(config, resume=True))
        measured = [line["step"] for line in read_log(tmp_path / "stopped" / "log.jsonl") if line["group"] == "val"]
        assert measured == [2, 4]
    for name in ("config", "state"):
        assert read_json(whole / f"{name}.json") == read_json(stopped / f"{name}.json")
    config.eval.max_images = 3
    train(config, resume=True)
    last = read_log(tmp_path / "stopped" / "log.jsonl")[-2]
    assert last["text"].startswith("eval.max_images changed: the best checkpoint is chosen among PQ of both")


def test_resuming_with_another_config_is_rejected(tmp_path: Path) -> None:
    config = tiny_run(write_dataset(tmp_path / "data"), tmp_path / "out")
    config.optim.max_steps = 1
    train(config)
    with pytest.raises(RefineError, match="--resume"):
        train(config)
    # A field that was added to the config later counts as its default.
    written = last_checkpoint(config.out) / "run.json"
    content = read_json(written)
    del content["model"]["roi_canonical_size"]
    write_json(written, content)
    assert train(config, resume=True) == written.parent
    config.model.roi_canonical_size = 100.0
    with pytest.raises(RefineError, match=r"run\.json: the run had another model"):
        train(config, resume=True)
    config.model.roi_canonical_size = 224.0
    config.optim.batch_size = 2
    with pytest.raises(RefineError, match=r"optim\.batch_size"):
        train(config, resume=True)


def test_resuming_in_another_precision(tmp_path: Path) -> None:
    config = tiny_run(write_dataset(tmp_path / "data", 2), tmp_path / "out")
    config.optim.batch_size = 1
    scales = []
    for step, precision in enumerate(("32", "fp16"), 1):
        config.optim.precision, config.optim.max_steps = precision, step
        scales.append(read_json(train(config, resume=True) / "state.json")["scaler"].get("scale"))
    assert scales == [None, 65536.0]


def test_resuming_with_other_categories_is_rejected(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "data", 2)
    config = tiny_run(folder, tmp_path / "out")
    config.optim.max_steps = 1
    train(config)
    config.optim.max_steps = 2
    path = next(folder.glob("*.json"))
    content = read_json(path)
    content["categories"].reverse()
    write_json(path, content)
    train(config, resume=True)
    for category in content["categories"]:
        category["name"] = {"red": "green", "green": "red"}.get(category["name"], category["name"])
    write_json(path, content)
    with pytest.raises(RefineError, match=r"data.train: category 3 is 'green' \(thing\), but 'red'"):
        train(config, resume=True)
