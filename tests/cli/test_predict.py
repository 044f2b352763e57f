"""`refine predict`: selection of images, outputs, interruption and resumption."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.disk import full_disk
from helpers.tiny_network import tiny_config
from PIL import Image

import refine.formats.result_files
from refine.checkpoint.folder import SavedModel, save_model
from refine.cli.main import main
from refine.cli.options import FUSION
from refine.formats.settings import OPTIONS
from refine.formats.writer import JOURNAL, PredictionWriter
from refine.fusion.config import FusionConfig
from refine.inference.image_job import NO_LIMIT
from refine.inference.predictor import Predictor
from refine.modeling.model import PanopticModel
from refine.savers import SAVERS
from refine.structures import Categories, Category

CATEGORIES = Categories([Category(7, "thing", True, (220, 20, 60)), Category(9, "ground", False, (90, 90, 90))])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Folder of a small network with random weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    model = PanopticModel(tiny_config(0, {"max_detections": 5}), 1, 2).eval()
    save_model(
        folder, SavedModel(model, CATEGORIES, (64, 96), fusion=FusionConfig(stuff_area=16, score_threshold=0.1))
    )
    return str(folder)


@pytest.fixture
def images(tmp_path):
    """Folder with four images, some with equal names in different subfolders."""
    rng = np.random.default_rng(0)
    for name in ("x/0.png", "x/1.jpg", "y/0.png", "y/deep/0.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(path)
    return tmp_path / "images"


def run(checkpoint, source, out, *more):
    return main(
        ["predict", str(source), "-o", str(out), "--checkpoint", checkpoint, "--device", "cpu", *map(str, more)]
    )


def files(out):
    return {
        str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in out.rglob("*") if p.is_file()
    }


def content(out):
    return json.loads((out / "panoptic.json").read_text())


@pytest.fixture
def whole(checkpoint, images, tmp_path, capsys):
    """Hashes of the files that an uninterrupted run writes."""
    assert run(checkpoint, images, tmp_path / "whole", "--recursive") == 0
    capsys.readouterr()
    return files(tmp_path / "whole")


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


class _Stop:
    """Patch of `Predictor.predict_raw` that raises an error at the n-th image."""

    def __init__(self, monkeypatch, n, error):
        self.left, self.error = n, error
        before = Predictor.predict_raw

        def predict_raw(predictor, images, min_score=0.0):
            self.left -= 1
            if self.left == 0:
                raise self.error
            return before(predictor, images, min_score)

        monkeypatch.setattr(Predictor, "predict_raw", predict_raw)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143)])
def test_an_interruption_keeps_what_is_finished(error, checkpoint, images, whole, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        _Stop(patch, 3, error)
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
    assert "2 of 4 images are finished already" in capsys.readouterr().err
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
    _Stop(monkeypatch, 1, KeyboardInterrupt())
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
    assert "1 of 4 images are finished already" in capsys.readouterr().err
    assert files(out) == whole


def test_resume_recomputes_only_missing_or_outdated_results(checkpoint, images, tmp_path, capsys):
    out = tmp_path / "out"

    def finished(*more):
        assert run(checkpoint, images, out, "--recursive", "--resume", *more) == 0
        found = re.search(r"(\d+) of \d+ images are finished already", capsys.readouterr().err)
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
    assert "2 of 2 images are finished already" in capsys.readouterr().err
    assert files(out) == before
    assert run(checkpoint, others, out, "--resume") == 0
    assert "finished already" not in capsys.readouterr().err
    assert run(checkpoint, others, tmp_path / "expected") == 0
    assert files(out) == files(tmp_path / "expected") != before


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
    assert all(OPTIONS[f"fusion.{name}"] == f"--{name.replace('_', '-')}" for name in FUSION)
    assert run(checkpoint, images / "x", tmp_path / "two", "--range", "0", "9") == 0
    capsys.readouterr()
    assert run(checkpoint, images / "x", tmp_path / "two", "--resume", "--range", "0", "9") == 0
    assert "2 of 2 images are finished already" in capsys.readouterr().err
    assert files(tmp_path / "out") == before


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
    _Stop(monkeypatch, 1, error)
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


def test_shards_are_merged(checkpoint, images, whole, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["--recursive", "--shard"]
    assert main(["merge", str(out)]) == 1
    assert "holds no finished shard" in capsys.readouterr().err
    for shard in ("3/3", "1/3"):
        assert run(checkpoint, images, out, *words, shard) == 0
    assert not (out / "panoptic.json").exists()
    assert main(["merge", str(out)]) == 1
    assert "1 of 3 shards are not finished: 2/3; run them again" in capsys.readouterr().err
    assert run(checkpoint, images, out, *words, "2/3") == 0
    assert run(checkpoint, images, out, *words, "3/3", "--resume") == 0
    assert "2 of 2 images are finished already" in capsys.readouterr().err
    assert main(["merge", str(out)]) == 0
    assert files(out) == whole


def test_shards_report_what_failed(checkpoint, images, tmp_path, capsys):
    out = tmp_path / "out"
    (images / "x/broken.png").write_bytes(b"no image")
    words = ["--recursive", "--save", "coco,instances", "--shard"]
    assert [run(checkpoint, images, out, *words, f"{n}/2") for n in (1, 2)] == [0, 1]
    assert main(["merge", str(out)]) == 1
    assert "1 of 5 images failed" in capsys.readouterr().err
    assert [failure["file_name"] for failure in json.loads((out / "failed.json").read_text())] == ["x/broken.png"]
    assert len(content(out)["images"]) == 4
    assert run(checkpoint, images, tmp_path / "one", *words[:-1]) == 1
    assert (out / "instances.json").read_bytes() == (tmp_path / "one" / "instances.json").read_bytes()
    for shard in ("0/2", "3/2", "1", "1/x"):
        with pytest.raises(SystemExit):
            run(checkpoint, images, out, "--shard", shard)


def test_shards_of_other_images_are_not_merged(checkpoint, images, tmp_path, capsys):
    out, words = tmp_path / "out", ["--recursive", "--save", "coco", "--shard"]
    assert run(checkpoint, images, out, *words, "1/2") == 0
    shutil.copy(next(images.rglob("*.png")), images / "0.png")
    assert run(checkpoint, images, out, *words, "2/2") == 0
    assert main(["merge", str(out)]) == 1
    assert "2-of-2.jsonl: was written for another list of images than 1-of-2" in capsys.readouterr().err
    assert run(checkpoint, images, out, *words, "1/2", "--resume") == 1
    assert "another list of images; run all shards without --resume" in capsys.readouterr().err
    assert run(checkpoint, images, out, *words, "1/2") == 0
    assert main(["merge", str(out)]) == 0
    assert len(content(out)["images"]) == 5


def test_finished_results_are_listed_though_all_others_fail(checkpoint, images, tmp_path, capsys):
    out, words = tmp_path / "out", ["--recursive", "--save", "coco"]
    assert run(checkpoint, images, out, *words) == 0
    names = [image["file_name"] for image in content(out)["images"]]
    (images / names[-1]).write_bytes(b"no image")
    assert run(checkpoint, images, out, *words, "--resume") == 1
    assert "1 of 4 images failed" in capsys.readouterr().err
    assert [image["file_name"] for image in content(out)["images"]] == names[:-1]
    failed = (out / "failed.json").read_bytes()
    assert run(checkpoint, images, out, *words, "--resume", "--score-threshold", "0.9") == 1
    assert "was written with" in capsys.readouterr().err
    assert (out / "failed.json").read_bytes() == failed
    # A shard without a result is finished too, or nothing could be merged.
    assert [run(checkpoint, images, out, *words, "--shard", f"{n}/4") for n in (1, 2, 3, 4)] == [0, 0, 0, 1]
    assert "none of the 1 images could be used" in capsys.readouterr().err
    assert main(["merge", str(out)]) == 1
    assert [image["file_name"] for image in content(out)["images"]] == names[:-1]


def test_joint_files_of_an_earlier_run_are_removed(checkpoint, images, tmp_path):
    out = tmp_path / "out"
    assert run(checkpoint, images, out, "--recursive", "--save", "coco,instances") == 0
    assert run(checkpoint, images / "x", out, "--save", "coco") == 0
    assert not (out / "instances.json").exists()


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


@pytest.mark.parametrize("name", ["score-threshold", "overlap-threshold", "sigma", "ue-threshold"])
def test_nan_thresholds_are_reported(name, checkpoint, images, tmp_path, capsys):
    assert run(checkpoint, images, tmp_path / "out", f"--{name}", "nan") == 1
    assert f"fusion.{name.replace('-', '_')} is nan" in capsys.readouterr().err


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
    words = [sys.executable, "-m", "refine.cli.main", command]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


EVERY = ["coco", *SAVERS]


@pytest.fixture
def other_files(checkpoint, images, tmp_path, capsys):
    """Hashes of the files of an uninterrupted run that saves every format."""
    assert run(checkpoint, images, tmp_path / "every", "--recursive", "--save", ",".join(EVERY)) == 0
    capsys.readouterr()
    return files(tmp_path / "every")


def test_formats_are_chosen_by_name(checkpoint, images, whole, other_files, tmp_path, capsys):
    assert {name: other_files[name] for name in whole} == whole  # the default's files are the same
    assert {path.split("/")[0] for path in other_files} == {
        "panoptic.json", "sources.jsonl", "panoptic", "overlays", "labels", "classes", "objects.csv", "geojson",
        "cutouts", "parts", "instances.json", "fiftyone.json", "labelme", "cvat.xml", "labelstudio.json",
    }  # fmt: skip
    assert run(checkpoint, images, tmp_path / "some", "--recursive", "--save", "geojson") == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"in {tmp_path / 'some'}")
    kept = ("panoptic", "geojson", "sources.jsonl")
    expected = {path: number for path, number in other_files.items() if path.split("/")[0] in kept}
    assert files(tmp_path / "some") == expected | {"panoptic.json": whole["panoptic.json"]}
    assert run(checkpoint, images, tmp_path / "none", "--save", "coco,tiff") == 1
    assert "--save: unknown format 'tiff'; choose from coco, overlay" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_resume_adds_missing_formats(checkpoint, images, other_files, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["--recursive", "--resume", "--save", ",".join(EVERY)]
    assert run(checkpoint, images, out, "--recursive") == 0
    assert run(checkpoint, images, out, *words) == 0
    assert files(out) == other_files
    things = [path for path in other_files if path.startswith("cutouts/y/0/")]
    for path in ("labels/x/0.tif", "classes/x/1.tif", things[-1], "objects.csv"):
        (out / path).unlink()
    (out / things[0]).with_name("77.png").touch()  # an object of an earlier result
    (images / "x" / "00.png").write_bytes((images / "x" / "0.png").read_bytes())  # all later ids change
    capsys.readouterr()
    assert run(checkpoint, images, out, *words) == 0
    assert "1 of 5 images are finished already" in capsys.readouterr().err
    assert not (out / things[0]).with_name("77.png").exists()
    ids = {image["file_name"]: image["id"] for image in content(out)["images"]}
    listed = json.loads((out / "fiftyone.json").read_text())
    assert {image["file_name"]: image["id"] for image in listed["images"]} == ids
    results = json.loads((out / "instances.json").read_text())
    assert {result["image_id"] for result in results} == set(ids.values())
    after = files(out)
    joint = {saver.joint for saver in SAVERS.values()} | {"panoptic.json", "sources.jsonl"}
    assert {path: after[path] for path in other_files if path not in joint} == {
        path: number for path, number in other_files.items() if path not in joint
    }
    assert joint - {None} <= set(after)


def test_a_format_that_fails_leaves_no_file_of_the_image(checkpoint, images, tmp_path, monkeypatch, capsys):
    def fail(item):
        yield b"first"
        raise MemoryError

    monkeypatch.setitem(SAVERS, "labels", replace(SAVERS["labels"], encode=fail))
    out = tmp_path / "out"
    assert run(checkpoint, images / "x", out, "--save", "geojson,labels,csv") == 1
    assert "x/0.png: does not fit into memory" in capsys.readouterr().err
    assert set(files(out)) <= {JOURNAL, "panoptic.json", "objects.csv", "failed.json"}
