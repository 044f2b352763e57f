"""All commands: their output and files, and a one-line error for every mistake."""

import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.tiny_network import tiny_config
from PIL import Image

from refine.checkpoint.folder import SavedModel, save_model
from refine.cli.main import COMMANDS, main
from refine.fusion.config import FusionConfig
from refine.modeling.model import PanopticModel
from refine.structures import Categories, Category, rgb_to_id
from refine.tensors import read_weights, write_weights

CATEGORIES = Categories(
    [
        Category(7, "thing", True, (220, 20, 60)),
        Category(9, "ground", False, (90, 90, 90)),
        Category(11, "sky", False, (70, 130, 180)),
    ]
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Folder of a small network with random weights."""
    torch.manual_seed(0)
    config = tiny_config(2, {"max_detections": 5})
    folder = tmp_path_factory.mktemp("model") / "tiny"
    model = PanopticModel(config, CATEGORIES.num_things, len(CATEGORIES)).eval()
    fusion = FusionConfig(stuff_area=16, score_threshold=0.1)
    save_model(folder, SavedModel(model, CATEGORIES, test_size=(64, 96), fusion=fusion, data="nothing"))
    return str(folder)


@pytest.fixture
def image_path(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    return path


def last_line(capsys) -> str:
    """Return the error line on stderr, after checking that there is no traceback."""
    error = capsys.readouterr().err
    assert "Traceback" not in error
    line = error.strip().splitlines()[-1]
    assert line.startswith("refine: error: "), error
    return line


def test_predict_writes_what_panopticapi_reads(checkpoint, image_path, tmp_path, capsys):
    grey = tmp_path / "grey.jpg"
    Image.open(image_path).convert("L").save(grey)
    out = tmp_path / "out"
    assert main(["predict", str(image_path), str(grey), "-o", str(out), "--checkpoint", checkpoint]) == 0
    content = json.loads((out / "panoptic.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["image.png", "grey.jpg"]
    for annotation in content["annotations"]:
        ids = rgb_to_id(np.asarray(Image.open(out / "panoptic" / annotation["file_name"])))
        assert ids.shape == (40, 60)
        areas = {s["id"]: s["area"] for s in annotation["segments_info"]}
        assert areas == {i: int((ids == i).sum()) for i in np.unique(ids) if i}
    assert sorted(p.name for p in (out / "overlays").iterdir()) == ["grey.jpg", "image.jpg"]
    assert "classes of stuff" in capsys.readouterr().out


def test_thresholds_override_those_of_the_checkpoint(checkpoint, image_path, tmp_path):
    def areas(*thresholds):
        out = tmp_path / "-".join(thresholds)
        assert main(["predict", str(image_path), "--checkpoint", checkpoint, "-o", str(out), *thresholds]) == 0
        (annotation,) = json.loads((out / "panoptic.json").read_text())["annotations"]
        return [segment["area"] for segment in annotation["segments_info"]]

    alone = areas("--score-threshold", "1", "--stuff-area", "0")
    assert alone
    assert areas("--score-threshold", "1", "--stuff-area", str(max(alone))) == [max(alone)]
    assert areas("--score-threshold", "1", "--stuff-area", str(max(alone) + 1)) == []


def test_one_bad_image_does_not_affect_the_others(checkpoint, image_path, tmp_path, capsys):
    bad = tmp_path / "bad.png"
    bad.write_bytes(image_path.read_bytes()[:-200])
    out = tmp_path / "out"
    assert main(["predict", str(bad), str(image_path), "-o", str(out), "--checkpoint", checkpoint]) == 1
    assert "1 of 2 images failed" in last_line(capsys)
    content = json.loads((out / "panoptic.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["image.png"]


def claim(path, width, height):
    """Rewrite a PNG's header to claim another size."""
    import struct
    import zlib

    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda p: p.write_bytes(b""), "image.png"),
        (lambda p: p.write_bytes(b"not an image"), "image.png"),
        (lambda p: p.write_bytes(p.read_bytes()[:500]), "image.png"),
        (lambda p: claim(p, 0, 40), "image.png"),
        (lambda p: claim(p, 100_000, 100_000), "image.png"),
        (lambda p: p.unlink(), "image.png"),
    ],
    ids=["empty", "text", "cut off", "zero wide", "huge", "missing"],
)
def test_unreadable_images_are_reported(damage, words, checkpoint, image_path, tmp_path, capsys):
    damage(image_path)
    assert main(["predict", str(image_path), "-o", str(tmp_path / "out"), "--checkpoint", checkpoint]) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert words in error
    written = [path.name for path in tmp_path.glob("out/**/*") if path.is_file()]
    assert written == (["failed.json"] if image_path.exists() else [])


def test_a_folder_without_images_is_reported(checkpoint, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["predict", str(tmp_path / "empty"), "-o", str(tmp_path / "out"), "--checkpoint", checkpoint]) == 1
    assert "empty" in last_line(capsys)
    assert not (tmp_path / "out").exists()


def test_unknown_checkpoints_and_methods_are_reported(checkpoint, image_path, tmp_path, capsys):
    out = ["-o", str(tmp_path / "out")]
    assert main(["predict", str(image_path), *out, "--checkpoint", "nowhere"]) == 1
    assert "nowhere: no such model" in last_line(capsys)
    assert main(["predict", str(image_path), *out, "--checkpoint", checkpoint, "--method", "soe"]) == 1
    assert "occlusion" in last_line(capsys)
    assert main(["predict", str(image_path), *out, "--checkpoint", checkpoint, "--method", "magic"]) == 1
    assert "magic" in last_line(capsys)


@pytest.mark.parametrize("device", ["foo", "cuda:99"])
def test_missing_devices_are_reported(device, checkpoint, image_path, tmp_path, capsys):
    words = [str(image_path), "-o", str(tmp_path / "out"), "--checkpoint", checkpoint, "--device", device]
    for command in ("predict", "explain"):
        assert main([command, *words]) == 1
        assert f"device {device}: cannot be used" in last_line(capsys)


def test_inputs_are_not_overwritten(checkpoint, image_path, tmp_path, capsys):
    def refused(*words):
        assert main([str(word) for word in words]) == 1
        assert "is also an input file; choose a different path" in last_line(capsys)

    given = tmp_path / "given.json"
    given.write_text("{}")
    refused("check-data", "--images", tmp_path, "--json", given, "--segments", tmp_path, "--out", given)
    refused("convert", given, "-o", tmp_path / "model", "--report", given)
    refused("convert", given, "-o", given)
    assert given.read_text() == "{}"
    overlay = tmp_path / "out" / "overlays" / "a.jpg"
    overlay.parent.mkdir(parents=True)
    Image.open(image_path).save(overlay)
    before = overlay.read_bytes()
    refused("predict", overlay, "-o", tmp_path / "out", "--checkpoint", checkpoint)  # would be its own overlay
    assert overlay.read_bytes() == before


def test_file_names_that_the_terminal_cannot_show(checkpoint, image_path, tmp_path, monkeypatch):
    named = image_path.rename(tmp_path / "naïve 图.png")
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict"))
    assert main(["predict", str(named), "-o", str(tmp_path / "naïve"), "--checkpoint", checkpoint]) == 0
    sys.stdout.flush()
    assert rb"na\xefve" in sys.stdout.buffer.getvalue()
    assert (tmp_path / "naïve/panoptic/naïve 图.png").exists()


def test_damaged_checkpoints_are_reported(checkpoint, image_path, tmp_path, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    words = ["predict", str(image_path), "-o", str(tmp_path / "out"), "--checkpoint", str(broken)]
    assert main(words) == 1
    assert "model.safetensors" in last_line(capsys)
    config = json.loads((broken / "config.json").read_text())
    config["model"]["fpn_channels"] = 24
    (broken / "config.json").write_text(json.dumps(config))
    shutil.copy(f"{checkpoint}/model.safetensors", weights)
    assert main(words) == 1
    assert "broken" in last_line(capsys)


def test_outputs_that_are_not_finite_name_the_image(checkpoint, image_path, tmp_path, capsys):
    shutil.copytree(checkpoint, tmp_path / "overflowing")
    path = tmp_path / "overflowing" / "model.safetensors"
    write_weights(path, {k: v * 1e25 if "fpn.levels" in k else v for k, v in read_weights(path).items()})
    out = tmp_path / "out"
    assert main(["predict", str(image_path), "-o", str(out), "--checkpoint", str(path.parent)]) == 1
    error = capsys.readouterr().err
    assert f"{image_path}: image 1 of 1: " in error
    assert "NaN or infinite values" in error
    assert not list(out.glob("panoptic/*.png"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--config", "scenes", "--optim.lr", "fast"], "config: optim.lr: expected a number, got fast"),
        (
            ["--config", "scenes", "--optim.steps", "1"],
            "optim.steps: unknown field (did you mean optim.max_steps?)",
        ),
        (["--config", "scenes", "--optim.batch_size", "0"], "optim.batch_size is 0; give at least 1"),
        (["--config", "scenes", "--data.train.images="], "data.train.images is not given"),
        ([], "--config: choose a config: a YAML file, or one of refine's own, such as dsb2018, nuclei"),
        (["--config", "not_utf8.yaml"], "is not valid YAML ('utf-8' codec"),
    ],
)
def test_invalid_configs_are_reported(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "not_utf8.yaml").write_bytes(b"out: \xff")
    assert main(["train", *words, "--out", str(tmp_path / "run")]) == 1
    assert message in last_line(capsys)
    assert not (tmp_path / "run").exists()


def test_help_is_instant_and_every_command_has_one(capsys):
    """`--help`, `models` and the error for a missing file or model import neither torch nor TLS."""
    code = "import sys; from refine.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    for name in ("predict", "evaluate", "check-data", "convert", "benchmark"):
        code += f"try: main(['{name}', '--help'])\nexcept SystemExit: pass\n"
    code += (
        "main(['convert', 'nope.pkl', '-o', 'x'])\nmain(['benchmark', 'nope'])\nmain(['benchmark', 'nope.yaml'])\n"
    )
    code += "main(['serve', '--checkpoint', 'nope'])\n"
    code += "main('evaluate --checkpoint nope --cityscapes . --out x.json'.split())\n"
    code += "main(['models'])\nprint(sorted({'torch', 'ssl'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
    assert [line.split(": ")[2] for line in done.stderr.splitlines()] == [
        *("nope.pkl", "nope", "nope.yaml", "nope", "nope")
    ]
    for name in COMMANDS:
        assert f"    {name}" in done.stdout
        with pytest.raises(SystemExit) as exit_of_help:
            main([name, "--help"])
        assert exit_of_help.value.code == 0
        assert f"refine {name}" in capsys.readouterr().out


def test_models_lists_the_shipped_models(capsys):
    assert main(["models"]) == 0
    assert "nuclei" in capsys.readouterr().out


def test_benchmark_adds_up(checkpoint, tmp_path, capsys):
    out = tmp_path / "b.json"
    words = ["benchmark", checkpoint, "--size", "64", "96", "--batch", "2", "--rounds", "2", "--out", str(out)]
    assert main(words) == 0
    assert "masks 2" in capsys.readouterr().out
    result = json.loads(out.read_text())["models"][checkpoint]
    assert {"backbone", "rpn", "masks 1", "semantics 2", "fusion", "other"} <= set(result["stages"])
    seconds = [stage["seconds"] for stage in result["stages"].values()]
    assert min(seconds) >= 0
    assert sum(seconds) == pytest.approx(result["seconds"], rel=0.3)
    assert 0 < result["trained"] <= result["parameters"]
    assert result["memory"] > 2**20


def test_closed_and_full_standard_output(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["models"]) == 0
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["models"]) == 1
        monkeypatch.undo()
    assert last_line(capsys).startswith("refine: error: the output cannot be written (No space left")


def test_the_package_runs_as_the_command():
    """As in `torchrun -m refine train`."""
    for words, usage in ((["--help"], "usage: refine "), (["models", "--help"], "usage: refine models ")):
        done = subprocess.run([sys.executable, "-m", "refine", *words], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(usage)
