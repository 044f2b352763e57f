"""Runs that end early: unreadable images, failing evaluations, signals, a second run in the same folder."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.tiny_run import tiny_run, write_dataset

from refine.cli.main import main
from refine.config import to_mapping
from refine.errors import RefineError
from refine.files import read_json, write_json
from refine.training.config import RunConfig
from refine.training.logs import one_line, read_log
from refine.training.run_folder import REPLACED, recover
from refine.training.train import train
from refine.training.update import TrainingModule


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    run = tiny_run(write_dataset(tmp_path / "data", 4), tmp_path / "out")
    run.optim.max_steps = 2
    return run


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("missing", [True, False])
def test_an_unreadable_training_image_ends_the_run(
    workers: int, missing: bool, config: RunConfig, tmp_path: Path
) -> None:
    image = tmp_path / "data" / "images" / "002.png"
    config.workers = workers
    image.unlink() if missing else cut_off(image)
    with pytest.raises(RefineError, match=r"^\S*/images/002\.png: [^\n]*$"):
        train(config)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 2])
def test_failing_evaluation_keeps_the_checkpoint(workers: int, config: RunConfig, tmp_path: Path) -> None:
    files = config.data.train
    write_dataset(tmp_path / "val", 2)
    config.data.val = type(files)(
        images=str(tmp_path / "val/images"),
        json=str(tmp_path / "val/panoptic.json"),
        segments=str(tmp_path / "val/segments"),
    )
    config.workers, config.log.checkpoint_every = workers, 5000
    image = tmp_path / "val/images/001.png"
    whole = image.read_bytes()
    cut_off(image)
    kept = Path(config.out) / "checkpoints" / "step_000002"
    with pytest.raises(RefineError, match=rf"^evaluation at step 2 failed: .*001\.png.*{kept} is kept.*--resume"):
        train(config)
    assert not multiprocessing.active_children()
    image.write_bytes(whole)
    assert train(config, resume=True) == kept
    assert "PQ" in read_json(kept / "config.json")["metrics"]
    assert (Path(config.out) / "best").read_text().strip() == kept.name


def test_evaluation_restores_the_mode_of_every_module(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config.data.val, config.eval.every, config.eval.max_images = config.data.train, 1, 1
    config.optim.ema, config.optim.train_only = None, ["semantic_head"]
    config.model.backbone.norm = "bn"
    modes = []
    update = TrainingModule.update

    def watched(self, parts):  # type: ignore[no-untyped-def]
        modes.append([part.training for part in self.learner.model.modules()])
        return update(self, parts)

    monkeypatch.setattr(TrainingModule, "update", watched)
    train(config)
    assert modes[0] == modes[1]
    assert set(modes[0]) == {True, False}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_the_command(
    number: signal.Signals,
    code: int,
    config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    update = TrainingModule.update

    def signalled(self, parts):  # type: ignore[no-untyped-def]
        os.kill(os.getpid(), number)
        return update(self, parts)

    write_json(tmp_path / "run.json", to_mapping(config))
    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "update", signalled)
        with pytest.raises(SystemExit) as ended:
            main(["train", "--config", str(tmp_path / "run.json")])
    assert ended.value.code == code
    output = capfd.readouterr()
    assert f"stopped at step 1 of 2; continue with: refine train --resume --out {config.out}\n" in output.err
    assert output.out == ""
    # The folder alone suffices, and options override its config.
    assert main(["train", "--resume", "--out", config.out, "--log.every", "2"]) == 0
    assert capfd.readouterr().out == f"written to {config.out}/checkpoints/step_000002\n"
    for most in ("2", "1"):
        assert main(["train", "--resume", "--out", config.out, "--optim.max_steps", most]) == 0
        output = capfd.readouterr()
        assert f"is finished at step 2 (optim.max_steps is {most}); nothing was trained" in output.err
        assert output.out == ""
    assert main(["train", "--resume", "--out", str(tmp_path / "typo")]) == 1
    assert "typo: holds no run to resume" in capfd.readouterr().err


@pytest.mark.parametrize("name", REPLACED)
def test_a_run_replaces_no_files_of_others(config: RunConfig, name: str) -> None:
    path = Path(config.out, name)
    path.parent.mkdir()
    path.write_text("mine")
    with pytest.raises(RefineError, match=f"{name}: was not written by a run of refine, and would be replaced"):
        train(config, resume=name == "last")  # which starts a run where there is none
    assert list(path.parent.iterdir()) == [path]
    assert path.read_text() == "mine"


def test_a_second_run_in_a_folder_is_rejected(config: RunConfig) -> None:
    out = Path(config.out)
    out.mkdir()
    code = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, 2); print(1, flush=True); input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(out / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(RefineError, match="out: another run writes into this folder"):
        train(config)
    assert [path.name for path in out.iterdir()] == [".lock"]
    holder.kill()
    holder.wait()
    train(config)


def test_terminal_lines_fit_80_characters(config: RunConfig) -> None:
    train(config)
    values = next(line for line in read_log(Path(config.out) / "log.jsonl") if line["group"] == "train")
    line = one_line("step 180000 ", values)
    assert len(line) <= 80
    assert line.startswith(f"step 180000 loss {values['loss']:.4g} lr ")
    assert " rpn " in line
    assert " sem " in line
    many = dict.fromkeys((f"loss_{name}_1" for name in "abcdefghijklmnop"), 0.123) | values
    assert len(one_line("step 180000 ", many)) <= 80
    parts = {"PQ": 0.554, "SQ": 0.8, "RQ": 0.69, "SQ_stuff": 1, "PQ_things": 0.5, "PQ_stuff": 0.6}
    assert one_line("step 5 val ", parts) == "step 5 val PQ 55.4 SQ 80.0 RQ 69.0 things 50.0 stuff 60.0"


def test_full_disk_under_the_log_names_the_checkpoint(config: RunConfig, capfd: pytest.CaptureFixture[str]) -> None:
    kept = train(config)
    log = Path(config.out) / "log.jsonl"
    log.unlink()
    log.symlink_to("/dev/full")
    command = ["train", "--resume", "--out", config.out, "--optim.max_steps", "3"]
    assert main(command) == 1
    error = capfd.readouterr().err.splitlines()[-1]
    assert re.fullmatch(
        rf"refine: error: {log}: cannot be written \(No space left on device\); .*; checkpoint {kept} is kept; "
        rf"continue with: refine train --resume --out {config.out}",
        error,
    )
    log.unlink()
    log.write_text('{"step": 1, "group": "message", "text": ""}\n{"step": 2, "gro')  # a crash cut it short
    assert main(command) == 0
    assert {line["step"] for line in read_log(log)} == {1, 2, 3}
    assert all(json.loads(line) for line in log.read_text().splitlines())


def test_only_remains_of_this_program_are_removed(tmp_path: Path) -> None:
    remains = [f".{'0' * 32}.tmp", f".{'a' * 8}.step_000001"]
    kept = [".face.icon", ".ace", ".cafe.d", "deadbeef.txt"]
    for name in (*remains, *kept):
        (tmp_path / name).touch()
    assert recover(tmp_path, 1) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
