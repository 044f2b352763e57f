"""Interruption and resumption of `refine predict`."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
from helpers.predict_runs import Stop, content, files, run
from PIL import Image

import refine.formats.result_files
from refine.cli.main import main
from refine.cli.options import FUSION
from refine.formats.journal import JOURNAL
from refine.formats.settings import OPTIONS
from refine.formats.writer import PredictionWriter


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143)])
def test_an_interruption_keeps_what_is_finished(error, checkpoint, images, whole, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        Stop(patch, 3, error)
        if isinstance(error, SystemExit):
            with pytest.raises(SystemExit) as stopped:
                run(checkpoint, images, out, "--recursive")
            assert stopped.value.code == 143
        else:
            assert run(checkpoint, images, out, "--recursive") == 130
    assert "refine: note: stopped after 2 of 4 images" in capsys.readouterr().err
    assert [i["file_name"] for i in content(out)["images"]] == ["x/0.png", "x/1.jpg"]
    assert not (out / JOURNAL).exists()
    assert run(checkpoint, images, out, "--recursive", "--resume") == 0
    assert "2 of 4 images finished already" in capsys.readouterr().err
    assert files(out) == whole


@pytest.mark.parametrize("function", ["write_png", "write_bytes", "record"])
def test_an_interruption_while_writing_leaves_no_unlisted_file(function, checkpoint, images, tmp_path, monkeypatch):
    """Interrupted right after the PNG, the overlay, or the journal's entry of the second image was written."""
    owner = PredictionWriter if function == "record" else refine.formats.result_files
    before, calls = getattr(owner, function), []

    def stop(*arguments):
        before(*arguments)
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(owner, function, stop)
    out = tmp_path / "out"
    assert run(checkpoint, images, out, "--recursive") == 130
    listed = [i["file_name"].split(".")[0] for i in content(out)["images"]]
    assert listed == (["x/0", "x/1"] if function == "record" else ["x/0"])
    assert set(files(out)) == {
        "panoptic.json",
        "sources.jsonl",
        *(f"panoptic/{name}.png" for name in listed),
        *(f"overlays/{name}.jpg" for name in listed),
    }


def test_an_interruption_before_the_first_image_keeps_earlier_results(checkpoint, images, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert run(checkpoint, images, out, "--recursive") == 0
    before = files(out)
    Stop(monkeypatch, 1, KeyboardInterrupt())
    assert run(checkpoint, images, out, "--recursive") == 130
    assert files(out) == before


KILLED = """
import os, sys
from refine.inference.image_job import NO_LIMIT
from refine.inference.predictor import Predictor
from refine.cli.main import main
count, before = int(sys.argv[1]), Predictor.fuse
def fuse(*arguments):
    global count
    count -= 1
    if count < 0:
        os.kill(os.getpid(), 9)
    return before(*arguments)
Predictor.fuse = fuse
main(sys.argv[2:])
"""


def test_a_killed_run_is_resumed(checkpoint, images, whole, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["predict", str(images), "-o", str(out), "--checkpoint", checkpoint, "--device", "cpu", "--recursive"]
    done = subprocess.run([sys.executable, "-c", KILLED, "2", *words], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert len((out / JOURNAL).read_text().splitlines()) == 3
    assert not (out / "panoptic.json").exists()
    with (out / JOURNAL).open("a") as file:
        file.write('{"image": {"id": 3, "fi')  # a line that was cut short
    (out / "panoptic/x/1.png").write_bytes((out / "panoptic/x/1.png").read_bytes()[:-20])  # and a map
    assert main([*words, "--resume"]) == 0
    assert "1 of 4 images finished already" in capsys.readouterr().err
    assert files(out) == whole


def test_resume_recomputes_only_missing_or_outdated_results(checkpoint, images, tmp_path, capsys):
    out = tmp_path / "out"

    def finished(*more):
        assert run(checkpoint, images, out, "--recursive", "--resume", *more) == 0
        found = re.search(r"(\d+) of \d+ images finished already", capsys.readouterr().err)
        return int(found[1]) if found else 0

    assert finished() == 0
    assert finished() == 4
    (out / "overlays/x/0.jpg").unlink()
    assert finished("--save", "coco") == 4
    assert finished() == 3
    os.utime(images / "y/0.png", (0, 0))
    assert finished() == 3
    (out / "sources.jsonl").write_text(re.sub("y/0.png", "y/1.png", (out / "sources.jsonl").read_text()))
    assert finished() == 3  # the image of this result is unknown
    (images / "x" / "00.png").write_bytes((images / "x" / "0.png").read_bytes())  # all later ids change
    assert finished() == 4
    result = content(out)
    assert [i["id"] for i in result["images"]] == [a["image_id"] for a in result["annotations"]] == [1, 2, 3, 4, 5]
    assert [i["file_name"] for i in result["images"]][:2] == ["x/0.png", "x/00.png"]


def test_resume_knows_images_of_the_same_name_and_older_ones(checkpoint, images, tmp_path, capsys):
    out, others, copies = tmp_path / "out", tmp_path / "others", tmp_path / "copies"
    assert run(checkpoint, images / "x", out) == 0
    before = files(out)
    others.mkdir()
    for source, other in ((images / "x/0.png", "1.jpg"), (images / "x/1.jpg", "0.png")):
        Image.open(source).rotate(180).save(others / other)
        os.utime(others / other, (0, 0))
    shutil.copytree(images / "x", copies)  # with the times of the originals
    assert run(checkpoint, copies, out, "--resume") == 0
    assert "2 of 2 images finished already" in capsys.readouterr().err
    assert files(out) == before
    assert run(checkpoint, others, out, "--resume") == 0
    assert "finished already" not in capsys.readouterr().err
    assert run(checkpoint, others, tmp_path / "expected") == 0
    assert files(out) == files(tmp_path / "expected") != before


def test_resume_rejects_a_model_whose_config_was_changed(checkpoint, images, tmp_path, capsys):
    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(checkpoint, model)
    assert run(str(model), images / "x", out) == 0
    config = json.loads((model / "config.json").read_text())
    config["model"]["box_head"]["nms"] = 0.9
    (model / "config.json").write_text(json.dumps(config))
    assert run(str(model), images / "x", out, "--resume") == 1
    assert "settings: the weights, config or labels of --checkpoint" in capsys.readouterr().err


def test_resume_rejects_other_settings(checkpoint, images, tmp_path, capsys):
    assert run(checkpoint, images / "x", tmp_path / "out") == 0
    before = files(tmp_path / "out")
    assert run(checkpoint, images / "x", tmp_path / "out", "--resume", "--score-threshold", "0.2") == 1
    message = "panoptic.json: was written with other settings: --score-threshold 0.1, now 0.2. Give the same"
    assert message in capsys.readouterr().err
    assert run(checkpoint, images / "x", tmp_path / "out", "--resume", "--channel", "2") == 1
    assert "settings: --channel none, now 2. Give" in capsys.readouterr().err
    assert run(checkpoint, images / "x", tmp_path / "out", "--resume", "--scale", "0.5", "--tile", "off") == 1
    expected = "settings: --scale none, now 0.5; --tile auto, now off; --overlap 256, now none. Give"
    assert expected in capsys.readouterr().err
    assert run(checkpoint, images / "x", tmp_path / "out", "--resume", "--precision", "bf16") == 1
    assert "settings: --precision 32, now bf16. Give" in capsys.readouterr().err
    assert all(OPTIONS[f"fusion.{name}"] == f"--{name.replace('_', '-')}" for name in FUSION)
    assert run(checkpoint, images / "x", tmp_path / "two", "--range", "0,9") == 0
    capsys.readouterr()
    assert run(checkpoint, images / "x", tmp_path / "two", "--resume", "--range", "0,9") == 0
    assert "2 of 2 images finished already" in capsys.readouterr().err
    assert files(tmp_path / "out") == before
