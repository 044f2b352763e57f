"""`refine predict`: outputs, options and errors."""

import json
import os
import subprocess
import sys

import pytest
from helpers.disk import full_disk
from helpers.predict_runs import CATEGORIES, Stop, content, files, run
from PIL import Image

from refine.cli.main import main
from refine.formats.journal import JOURNAL
from refine.inference.image_job import NO_LIMIT
from refine.inference.predictor import Predictor


def test_relative_paths_are_kept(whole, tmp_path):
    names = ["x/0", "x/1", "y/0", "y/deep/0"]
    assert set(whole) == {
        "panoptic.json",
        "sources.jsonl",
        *(f"panoptic/{n}.png" for n in names),
        *(f"overlays/{n}.jpg" for n in names),
    }
    result = content(tmp_path / "whole")
    assert [i["file_name"] for i in result["images"]] == ["x/0.png", "x/1.jpg", "y/0.png", "y/deep/0.png"]
    assert [a["file_name"] for a in result["annotations"]] == [f"{n}.png" for n in names]


def test_ids_and_names_come_from_the_data_set(checkpoint, images, tmp_path, capsys):
    entries = [
        {"id": 31, "file_name": "y/0.png"},
        {"id": 7, "file_name": "x/1.jpg"},
        {"id": 8, "file_name": "none.png"},
    ]
    listed = [entry | {"height": 40, "width": 60 + (entry["id"] == 7)} for entry in entries]
    truth = {"images": listed, "annotations": [], "categories": CATEGORIES.to_json()}
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    out = tmp_path / "out"
    assert run(checkpoint, images, out, "--json", tmp_path / "gt.json") == 1
    error = capsys.readouterr().err
    assert "x/1.jpg: 60 × 40 pixels, but" in error
    assert "none.png: no such file" in error
    assert "2 of 3 images failed" in error
    result = content(out)
    assert [(i["id"], i["file_name"]) for i in result["images"]] == [(31, "y/0.png")]
    assert [(a["image_id"], a["file_name"]) for a in result["annotations"]] == [(31, "y/0.png")]
    assert run(checkpoint, images / "x" / "0.png", out, "--json", tmp_path / "gt.json") == 1
    assert "--json: give one folder" in capsys.readouterr().err


def test_rotated_images_are_used_as_shown_or_as_stored(checkpoint, images, tmp_path, capsys):
    exif = Image.Exif()
    exif[0x112] = 6
    path = tmp_path / "turned.png"
    Image.open(images / "x/0.png").save(path, exif=exif)
    for words, size in (([], (40, 60)), (["--exif", "shown"], (40, 60)), (["--exif", "stored"], (60, 40))):
        assert run(checkpoint, path, tmp_path / "out", *words) == 0
        with Image.open(tmp_path / "out/panoptic/turned.png") as result:
            assert result.size == size
    assert json.loads((tmp_path / "out/panoptic.json").read_text())["info"]["exif"] == "stored"


def test_every_output_names_the_model(checkpoint, images, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(checkpoint, images / "x" / "0.png", out) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(f"model {checkpoint}" in line.replace("model: ", "model ") for line in lines)
    assert lines[-1] == f"results of model {checkpoint} in {out}; to look at them, open {out / 'overlays'}"
    info = content(out)["info"]
    assert (info["model"], info["method"], info["max_detections"]) == (checkpoint, "heuristic", 5)
    assert info["fusion"]["stuff_area"] == 16
    with Image.open(out / "overlays" / "0.jpg") as overlay:
        assert overlay.info["comment"].decode().endswith(f"model {checkpoint}")


def test_a_model_must_be_chosen(images, tmp_path, capsys):
    for command in ("predict", "explain"):
        assert main([command, str(images / "x"), "-o", str(tmp_path / "out")]) == 1
        error = capsys.readouterr().err
        assert error.startswith(
            "refine: error: --checkpoint: choose a model: nuclei (trained on nuclei), photographs"
        )
        assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


FRESH = """
import sys
from refine.cli.main import main
main(sys.argv[1:])
import refine.inference.evaluate
slow = {"torch._dynamo", "torchvision", "timm", "sympy", "torch.onnx", "pandas", "scipy", "matplotlib", "lightning"}
print(sorted(slow & sys.modules.keys()))
"""


def test_a_prediction_imports_nothing_slow(tmp_path):
    """torchvision and timm import torch._dynamo, which takes longer than all the rest."""
    Image.new("RGB", (64, 48), (200, 120, 160)).save(tmp_path / "a.png")
    words = ["predict", str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-c", FRESH, *words, "--checkpoint", "nuclei"], capture_output=True, text=True
    )
    assert done.stdout.endswith("\n[]\n"), done.stdout + done.stderr


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"),
    ],
)
def test_an_image_that_does_not_fit_into_memory_fails_alone(
    error, checkpoint, images, tmp_path, monkeypatch, capsys
):
    Stop(monkeypatch, 1, error)
    assert run(checkpoint, images / "x", tmp_path / "out") == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("refine: error: ")]
    assert errors[0].startswith(f"refine: error: {images}/x/0.png: does not fit into memory")
    assert errors[1].startswith("refine: error: 1 of 2 images failed")
    assert [i["file_name"] for i in content(tmp_path / "out")["images"]] == ["1.jpg"]


def test_images_that_fail_are_listed(checkpoint, images, tmp_path, capsys):
    out = tmp_path / "out"
    (images / "x/broken.png").write_bytes(b"no image")
    assert run(checkpoint, images, out, "--recursive") == 1
    message = capsys.readouterr().err.splitlines()[0].removeprefix("refine: error: ")
    assert message.startswith(f"{images}/x/broken.png: is not a supported image")
    assert json.loads((out / "failed.json").read_text()) == [
        {"id": 3, "file_name": "x/broken.png", "error": message}
    ]
    assert len(content(out)["images"]) == 4
    (images / "x/broken.png").unlink()
    assert run(checkpoint, images, out, "--recursive", "--resume") == 0
    assert not (out / "failed.json").exists()


def test_batches_give_the_same_results(checkpoint, images, tmp_path):
    Image.open(images / "y/0.png").resize((48, 40)).save(images / "y/0.png")  # the other three have one size
    assert run(checkpoint, images, tmp_path / "one", "--recursive") == 0
    assert run(checkpoint, images, tmp_path / "three", "--recursive", "--batch", "3") == 0
    one, three = (files(tmp_path / name) for name in ("one", "three"))
    assert one.keys() == three.keys()
    assert [name for name in one if one[name] != three[name]] in ([], ["panoptic.json"])
    for first, second in zip(*(content(tmp_path / n)["annotations"] for n in ("one", "three")), strict=True):
        for a, b in zip(first["segments_info"], second["segments_info"], strict=True):
            assert b == a | {"score": pytest.approx(a["score"], rel=1e-5)}  # sums in another order


def test_a_full_disk_ends_the_run_with_one_line(checkpoint, images, tmp_path, capsys):
    out = tmp_path / "out"
    with full_disk():
        assert run(checkpoint, images / "x", out) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "cannot be written (File too large)" in error
    for path in out.rglob("*"):
        assert path.is_dir() or path.name == JOURNAL
    assert run(checkpoint, images / "x", out, "--resume") == 0


def test_two_runs_in_one_folder_are_rejected(checkpoint, images, tmp_path, capsys):
    from refine.formats.journal import Journal

    journal = Journal(tmp_path / "out" / JOURNAL, {})
    assert run(checkpoint, images / "x", tmp_path / "out") == 1
    assert "another run is writing to this file" in capsys.readouterr().err
    journal.close()
    assert run(checkpoint, images / "x", tmp_path / "out") == 0


def test_possibly_missed_objects_are_noted(checkpoint, images, tmp_path, capsys, monkeypatch):
    found = {}
    before = Predictor.predict_raw

    def predict_raw(predictor, batch, min_score=0.0):
        (raw,) = before(predictor, batch, min_score)
        found[predictor.test_size] = len(raw.instances)
        return [raw]

    monkeypatch.setattr(Predictor, "predict_raw", predict_raw)
    Image.open(images / "x/0.png").resize((300, 200)).save(images / "large.png")
    some = ["--score-threshold", "0.1"]
    assert run(checkpoint, images / "large.png", tmp_path / "out", *some) == 0
    notes = capsys.readouterr().err
    assert "large.png is full: 5 objects were found" in notes
    assert "give --max-detections 20" in notes
    assert "large.png is reduced to less than 50%" in notes
    assert (
        run(checkpoint, images / "large.png", tmp_path / "out", *some, "--scale", "1", "--max-detections", 4000)
        == 0
    )
    assert not capsys.readouterr().err
    assert found[64, 96] == 5
    assert found[200, NO_LIMIT] > 20
    assert content(tmp_path / "out")["info"]["max_detections"] == 4000


@pytest.mark.parametrize(
    "words",
    [
        ["--stuff-area", "1" + 22 * "0"],
        ["--stuff-area", "nan"],
        ["--scale", "nan"],
        ["--scale", "0"],
        ["--scale", "1e400"],
        ["--max-detections", "0"],
        ["--max-detections", "9" * 5000],
    ],
)
def test_values_out_of_range_are_reported(words, checkpoint, images, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(checkpoint, images, tmp_path / "out", *words)
    assert stopped.value.code == 2
    assert f"argument {words[0]}: '{words[1][:8]}"[:30] in capsys.readouterr().err


HELP = """
import sys
from refine.cli.main import main
def quiet(*words):
    try: main(list(words))
    except SystemExit: pass
for name in ("predict", "explain", "fuse", "evaluate", "check-data"): quiet(name, "--help")
quiet("predict", "nowhere.png", "-o", "out", "--checkpoint", "nuclei")
quiet("predict", sys.argv[1], "-o", "out", "--checkpoint", "nowhere")
quiet("explain", sys.argv[1], "-o", "out")
quiet("models")
print("torch" in sys.modules)
"""


def test_wrong_paths_are_found_before_torch_is_imported(images):
    done = subprocess.run([sys.executable, "-c", HELP, str(images)], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False"), done.stdout
    assert done.stderr.count("refine: error: ") == 3


@pytest.mark.parametrize("command", ["--help", "models"])
def test_a_closed_pipe_ends_the_command_quietly(command):
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "refine", command]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
