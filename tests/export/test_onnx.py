"""A shipped model as an ONNX file: written by the command, and used by all that takes a checkpoint."""

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.exported import CONFIGS, image_of, tiny_model
from PIL import Image

from refine.checkpoint.folder import load_model, save_model
from refine.cli.main import main
from refine.errors import RefineError
from refine.export.panoptic import OUTPUTS, THRESHOLDS
from refine.export.verify import compare, require
from refine.inference.predictor import Predictor
from refine.networks.choice import ModelChoice
from refine.networks.onnx import OnnxSession, read_metadata
from refine.structures import PanopticResult

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "onnx"


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """The photographs model as an ONNX file; it has a separate detector and Unknown Erasing."""
    path = tmp_path_factory.mktemp("onnx") / "photographs.onnx"
    assert main(["export", "photographs", "--out", str(path)]) == 0
    return path


def _same(one: PanopticResult, other: PanopticResult) -> bool:
    equal = (one.segment_ids == other.segment_ids).float().mean().item()
    same = [(s.category_id, s.isthing) for s in one.segments] == [
        (s.category_id, s.isthing) for s in other.segments
    ]
    return same and equal >= 0.999


def test_predictor_runs_exported_model(exported):
    ours, theirs = Predictor("photographs"), Predictor(exported)
    assert theirs.fusion == ours.fusion
    assert theirs.categories == ours.categories
    assert theirs.network.digest() == ours.network.digest()
    image = image_of((150, 220))
    assert _same(ours(image), theirs(image))
    few = Predictor(exported, fusion={"stuff_area": 10_000, "unknown_erasing": False, "score_threshold": 0.2})
    again = Predictor(
        "photographs", fusion={"stuff_area": 10_000, "unknown_erasing": False, "score_threshold": 0.2}
    )
    assert _same(again(image), few(image))


def test_file_describes_itself(exported):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(exported), providers=["CPUExecutionProvider"])
    entries = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
    saved = load_model("photographs")
    assert entries["categories"] == saved.categories.to_json()
    assert entries["licence"] == "Apache-2.0"
    assert entries["test_size"] == list(saved.test_size)
    image = image_of((90, 120)).numpy()
    whole = session.run(["segment_ids", "segments_area"], {"image": image})
    assert whole[0].dtype == np.int32
    assert whole[0].shape == (90, 120)
    assert [int((whole[0] == n + 1).sum()) for n in range(len(whole[1]))] == whole[1].tolist()
    none = session.run(
        ["segments_id"], {"image": image, "stuff_area": np.array(1e6), "score_threshold": np.array(1.0)}
    )
    assert len(none[0]) == 0


def test_entries_of_other_tools_are_ignored():
    entries = read_metadata({"format": "1", "method": '"soe"', "onnx.infer": "onnxruntime.quant"}, "model.onnx")
    assert entries == {"format": 1, "method": "soe"}


def test_predict_command_takes_exported_model(exported, tmp_path, capsys):
    Image.fromarray(image_of((80, 120)).permute(1, 2, 0).numpy()).save(tmp_path / "scene.png")
    arguments = ["predict", str(tmp_path / "scene.png"), "--checkpoint", str(exported)]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "panoptic" / "scene.png").is_file()
    assert main([*arguments, "--out", str(tmp_path / "out2"), "--scale", "2"]) == 1
    assert "--scale: an ONNX file resizes images to the test size of its export; leave" in capsys.readouterr().err
    assert main([*arguments, "--out", str(tmp_path / "out2"), "--device", "cuda"]) == 1
    assert "CPU" in capsys.readouterr().err


def test_exported_models_have_no_probabilities(exported, tmp_path, capsys):
    """They are refused where these are needed, before any image is read; their instances can be combined."""
    other, image = tmp_path / "other.onnx", tmp_path / "no.png"
    shutil.copy(exported, other)
    image.write_bytes(b"no image")
    words = ["predict", str(image), "--out", str(tmp_path / "out"), "--instances", str(exported), str(other)]
    assert main(words) == 1
    assert capsys.readouterr().err == (
        f"refine: error: {exported}, {other}: has no probabilities of all classes, which several semantic maps are "
        "averaged by; give the models that were exported, or one model for the semantic map (--semantic)\n"
    )
    with pytest.raises(RefineError, match=r"photographs\.onnx: has no .* 'dilated' needs; give 'core'"):
        Predictor(exported, fusion={"ue_region": "dilated"})
    image = image_of((150, 220))
    both = Predictor(ModelChoice((str(exported), str(other)), (str(exported),)))
    assert _same(both(image), Predictor(exported)(image))


def test_page_runs_exported_model(exported, tmp_path):
    pytest.importorskip("gradio")
    from refine.serve.models import Models

    image, name = image_of((80, 120)), str(exported)
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "scene.png")
    models = Models(name)
    upload = models.predict(tmp_path / "scene.png", name)
    predictor = models.predictor(name)
    assert _same(models.fuse(upload, predictor.method, predictor.fusion), Predictor("photographs")(image))
    with pytest.raises(RefineError, match="soe"):  # exported with the heuristic alone
        models.fuse(upload, "soe", predictor.fusion)


def test_other_files_are_refused(tmp_path, capsys):
    import onnx

    broken, foreign = tmp_path / "broken.onnx", tmp_path / "foreign.onnx"
    broken.write_bytes(b"no model")
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [value], [])
    graph.output.append(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1]))
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, foreign)
    stripped = tmp_path / "partial.onnx"  # of another tool with a `format`, or stripped by one
    onnx.helper.set_model_props(model, {"format": "1", "method": '"soe"'})
    onnx.save(model, stripped)
    for path, message in (
        (broken, "cannot be read"),
        (foreign, "refine export"),
        (stripped, "metadata 'categories' is missing; export"),
    ):
        with pytest.raises(RefineError, match=message):
            Predictor(path)
    assert main(["export", "photographs", "--out", str(tmp_path / "model.txt")]) == 1
    assert main(["export", str(foreign), "--out", str(tmp_path / "model.onnx")]) == 1
    assert not (tmp_path / "model.onnx").exists()
    assert capsys.readouterr().err.count("refine: error:") == 2


def test_javascript_example_draws_an_overlay(exported, tmp_path):
    node = shutil.which("node")
    found = node and subprocess.run([node, "-e", "require('onnxruntime-node'); require('pngjs')"], cwd=EXAMPLE)
    if not found or found.returncode:
        pytest.skip("needs Node.js with onnxruntime-node and pngjs (NODE_PATH, or npm install in examples/onnx)")
    image = image_of((80, 120))
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "in.png")
    command = [node, EXAMPLE / "overlay.js", exported, tmp_path / "in.png", tmp_path / "out.png"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr
    result = Predictor("photographs")(image)
    assert len(done.stdout.splitlines()) == len(result)
    drawn = np.asarray(Image.open(tmp_path / "out.png").convert("RGB"))
    changed = (drawn != image.permute(1, 2, 0).numpy()).any(2)
    assert (changed == (result.segment_ids.numpy() > 0)).mean() > 0.99


def _dots(count: int) -> torch.Tensor:
    """Draw count × count bright discs on black, Tensor[3, H, W] uint8."""
    y, x = torch.meshgrid(torch.arange(32 * count), torch.arange(32 * count), indexing="ij")
    row, column = y // 32, x // 32
    apart = torch.hypot(y % 32 - 16.0 + (row * 7 + column * 3) % 5, x % 32 - 16.0 + (row * 5 + column * 11) % 7)
    light = 180 * torch.sigmoid(8.0 + (row + 2 * column) % 4 - apart) + 20 * torch.rand(
        y.shape, generator=torch.Generator().manual_seed(0)
    )
    return light.byte().expand(3, -1, -1).contiguous()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nuclei", *CONFIGS])
def test_every_kind_of_model_equals_pytorch(kind, tmp_path):
    """On images of ratio 4:3 and 1:4, of 200 objects, and without objects."""
    source, path = kind, tmp_path / "model.onnx"
    drawn = {"scene": image_of((120, 160)), "wide": image_of((64, 256))}
    if kind in CONFIGS:
        source = str(tmp_path / "model")
        save_model(source, tiny_model(kind))
    else:  # random weights behind a GroupNorm are ill-conditioned on a uniform image
        drawn |= {"crowd": _dots(15), "black": torch.zeros(3, 90, 70, dtype=torch.uint8)}
    for name, image in drawn.items():
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{name}.png")
    images = [str(tmp_path / f"{name}.png") for name in drawn]
    assert main(["export", source, "--out", str(path), "--images", *images]) == 0  # compares
    ours, theirs = Predictor(source), Predictor(path)
    for name, image in drawn.items():
        result = ours(image)
        assert _same(result, theirs(image)), name
        assert len(result) > {"crowd": 200, "black": 0}.get(name, 3)
    session = OnnxSession(path, str(path))
    none = Predictor(source, fusion={"score_threshold": 1.0})
    run = partial(session.run, score_threshold=1.0)
    require(compare(none, run, drawn.items()))
    assert not run(drawn["scene"])["segments_isthing"].any()


LOAD = """
import sys, torch, torchvision
program = torch.export.load(sys.argv[1]).module()
thresholds = [torch.tensor(float(x), dtype=torch.float64) for x in sys.argv[3:]]
torch.save(program(torch.load(sys.argv[2]), *thresholds), sys.argv[2])
assert "refine" not in sys.modules
"""


@pytest.mark.slow
def test_torch_format_equals_pytorch(tmp_path):
    """`refine export` compares the file with PyTorch; another process without refine gets the same from it."""
    saved = tiny_model("Panoptic-FPN")
    save_model(tmp_path / "model", saved)
    path, image = tmp_path / "model.pt2", image_of((90, 120))
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "x.png")
    command = ["export", str(tmp_path / "model"), "--out", str(path), "--format", "torch"]
    assert main([*command, "--images", str(tmp_path / "x.png")]) == 0  # compares
    torch.save(image, tmp_path / "x.pt")
    thresholds = [str(float(getattr(saved.fusion, name))) for name in THRESHOLDS]
    subprocess.run([sys.executable, "-c", LOAD, path, tmp_path / "x.pt", *thresholds], check=True, cwd=tmp_path)
    found = torch.load(tmp_path / "x.pt")
    assert list(found) == [name for name in OUTPUTS if name != "occlusion"]
    agreements = compare(Predictor(saved), lambda _: {k: v.numpy() for k, v in found.items()}, [("x", image)])
    require(agreements)
    assert agreements[0].segments[0] > 3
