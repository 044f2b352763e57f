"""Tests of external weight files: their code never runs, and they convert completely or not at all."""

import os
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import resnet50, resnext101_32x8d

from refine.checkpoint.convert.convert import COCO, convert, convert_file, read_checkpoint, to_model
from refine.checkpoint.convert.settings import read_settings
from refine.checkpoint.folder import load_model
from refine.cli.main import main
from refine.errors import RefineError
from refine.files import read_json, write_json
from refine.inference.predictor import Predictor
from refine.modeling.backbones import build_backbone
from refine.modeling.config import BackboneConfig
from refine.modeling.pretrained import load_pretrained
from refine.structures import Categories

COUNTS = [(n, int(n <= 2)) for n in range(1, 5)]
CATEGORIES = [{"id": n, "name": f"class {n}", "isthing": thing} for n, thing in COUNTS]


def detectron2_state() -> dict[str, np.ndarray]:
    """Return a narrow ResNet-18 Panoptic-FPN with 2 thing and 2 stuff classes, in detectron2's names."""
    generator = np.random.default_rng(0)
    state: dict[str, np.ndarray] = {}

    def layer(name: str, *shape: int, norm: str | None = None) -> None:
        state[f"{name}.weight"] = generator.normal(0, 0.1, shape).astype(np.float32)
        if norm is None:
            state[f"{name}.bias"] = np.zeros(shape[0], np.float32)
            return
        for leaf in ("weight", "bias", *(("running_mean", "running_var") if norm == "bn" else ())):
            state[f"{name}.norm.{leaf}"] = np.full(shape[0], leaf in ("weight", "running_var"), np.float32)

    layer("backbone.bottom_up.stem.conv1", 8, 3, 7, 7, norm="bn")
    channels = 8
    for stage, width in enumerate((8, 16, 32, 64), 2):
        for block in range(2):
            prefix = f"backbone.bottom_up.res{stage}.{block}"
            layer(f"{prefix}.conv1", width, channels, 3, 3, norm="bn")
            layer(f"{prefix}.conv2", width, width, 3, 3, norm="bn")
            if channels != width:
                layer(f"{prefix}.shortcut", width, channels, 1, 1, norm="bn")
            channels = width
        layer(f"backbone.fpn_lateral{stage}", 8, width, 1, 1)
        layer(f"backbone.fpn_output{stage}", 8, 8, 3, 3)
        for n in range(max(1, stage - 2)):
            layer(f"sem_seg_head.p{stage}.{2 * n}", 8, 8, 3, 3, norm="gn")
    layer("sem_seg_head.predictor", 3, 8, 1, 1)
    layer("proposal_generator.rpn_head.conv", 8, 8, 3, 3)
    layer("proposal_generator.rpn_head.objectness_logits", 3, 8, 1, 1)
    layer("proposal_generator.rpn_head.anchor_deltas", 12, 8, 1, 1)
    layer("roi_heads.box_head.fc1", 16, 8 * 49)
    layer("roi_heads.box_head.fc2", 16, 16)
    layer("roi_heads.box_predictor.cls_score", 3, 16)
    layer("roi_heads.box_predictor.bbox_pred", 8, 16)
    for n in range(1, 5):
        layer(f"roi_heads.mask_head.mask_fcn{n}", 8, 8, 3, 3)
    layer("roi_heads.mask_head.deconv", 8, 8, 2, 2)
    layer("roi_heads.mask_head.predictor", 2, 8, 1, 1)
    state["pixel_mean"] = np.float32([1, 2, 3]).reshape(3, 1, 1)
    state["proposal_generator.anchor_generator.cell_anchors.0"] = np.zeros((3, 4), np.float32)
    return state


def write(path: Path, content) -> Path:
    with path.open("wb") as file:
        pickle.dump(content, file)
    return path


class Malicious:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
@pytest.mark.parametrize("place", ["top", "value", "in the array"])
def test_code_in_a_pickle_never_runs(tmp_path, suffix, place):
    trace = tmp_path / "trace"
    evil = Malicious(f"touch {trace}")
    array = np.array([evil, None], dtype=object)
    content = {"top": evil, "value": {"model": {"w": evil}}, "in the array": {"model": {"w": array}}}[place]
    path = write(tmp_path / f"model{suffix}", content)
    with pytest.raises(RefineError, match=r"model\.p"):
        read_checkpoint(path)
    assert not trace.exists()
    pickle.loads(path.read_bytes())  # the file is dangerous indeed
    assert trace.exists()


@pytest.mark.parametrize("name", ["eval", "exec", "getattr", "__import__"])
def test_builtins_raise(tmp_path, name):
    path = tmp_path / "model.pkl"
    path.write_bytes(f"cbuiltins\n{name}\n(V1\ntR.".encode())
    with pytest.raises(RefineError, match=f"builtins.{name}"):
        read_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"\x80\x04]\x94."])
def test_files_without_weights_raise(tmp_path, content):
    path = tmp_path / "model.pkl"
    path.write_bytes(content)
    with pytest.raises(RefineError, match=r"model\.pkl"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "content",
    [
        b"Nr\xff\xff\xff\x7f.",  # 7 bytes; the unpickler in C allocates 2^31 entries of its memo
        b"\x80\x05\x96" + (2**33).to_bytes(8, "little") + b".",
        b"\x8e" + (2**40).to_bytes(8, "little") + b".",
        b"(lp0\n" + b"".join(b"(lp%d\ng%dg%da" % (n, n - 1, n - 1) for n in range(1, 60)) + b".",
        b"(" * 100_000 + b".",
        b"]" + b"]a" * 50_000 + b".",
    ],
)
def test_pickles_that_request_more_memory_than_their_size(tmp_path, content):
    (tmp_path / "model.pkl").write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(RefineError, match=r"model\.pkl"):
            read_checkpoint(tmp_path / "model.pkl")
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()


def test_arrays_that_share_their_bytes_raise(tmp_path):
    """A small file can contain a thousand arrays that share the same million bytes."""
    data, dtype = bytes(2**20), np.dtype("u1")
    state = {n: _Frombuffer(data, dtype, (2**20,)) for n in range(1000)}
    path = write(tmp_path / "model.pkl", {"model": state})
    assert path.stat().st_size < 2 * 2**20
    with pytest.raises(RefineError, match="larger than the file"):
        read_checkpoint(path)


class _Frombuffer:
    def __init__(self, *arguments) -> None:
        self.arguments = arguments

    def __reduce__(self):
        return np._core.numeric._frombuffer, (*self.arguments, "C")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e5m2, torch.float32])
def test_common_kinds_of_pth_files(tmp_path, dtype):
    """Parameters with gradients, low precision, and averaged weights in addition to the current ones."""
    state = {k: torch.nn.Parameter(torch.from_numpy(v).to(dtype)) for k, v in detectron2_state().items()}
    torch.save({"model": {"w": torch.zeros(1)}, "ema": {"module": state}}, tmp_path / "model.pth")
    write_json(tmp_path / "data.json", CATEGORIES)
    convert_file(tmp_path / "model.pth", tmp_path / "out", tmp_path / "data.json")
    model = load_model(tmp_path / "out").model
    expected = state["backbone.bottom_up.stem.conv1.weight"].detach().float()
    assert torch.equal(model.backbone.conv1.weight, expected)


def test_pickles_of_every_protocol_and_of_python_2(tmp_path):
    arrays = {"a": np.arange(6, dtype=">f4").reshape(2, 3).T, "b": np.array(2.5), "c": np.arange(3)}
    for protocol in range(6):
        path = tmp_path / f"{protocol}.pkl"
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "x"}, protocol=protocol))
        read = read_checkpoint(path)
        assert set(read) == {"a", "b", "c"}
        for name, array in arrays.items():
            np.testing.assert_array_equal(read[name], array)
            assert read[name].dtype.isnative
    # Written by Python 2, with the data as a string of bytes.
    path.write_bytes(
        b"(dS'w'\ncnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I2\ntcnumpy\ndtype\n"
        b"(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS'\\x00\\x00\\x80?\\x00\\x00\\x00@'\ntbs."
    )
    np.testing.assert_array_equal(read_checkpoint(path)["w"], [1.0, 2.0])


def test_weights_that_are_not_finite_raise(tmp_path):
    path = write(tmp_path / "model.pkl", {"model": {"w": np.float32([1, np.nan])}})
    with pytest.raises(RefineError, match="NaN or infinite values, first w"):
        read_checkpoint(path)


def test_command_line_converts_to_a_model_that_predicts(tmp_path, capsys):
    source = write(tmp_path / "model.pkl", {"model": detectron2_state(), "__author__": "d2"})
    write_json(tmp_path / "data.json", {"categories": CATEGORIES})
    words = ["--categories", str(tmp_path / "data.json"), "--report", str(tmp_path / "report.json")]
    assert main(["convert", str(source), "-o", str(tmp_path / "out"), *words]) == 0
    assert "detectron2 model" in capsys.readouterr().out
    report = read_json(tmp_path / "report.json")
    assert report["left"] == {"proposal_generator.anchor_generator.cell_anchors.0": [3, 4]}
    taken = report["taken"]["backbone.bottom_up.res3.0.shortcut.norm.weight"]
    assert taken == {"as": "backbone.layer2.0.downsample.1.weight", "shape": [16]}
    assert len(report["taken"]) + 1 == len(detectron2_state())
    assert report["model"]["backbone"]["name"] == "resnet18"
    assert report["model"]["pixel_mean"] == [1.0, 2.0, 3.0]
    saved = load_model(tmp_path / "out")
    assert len(saved.categories) == 4
    result = Predictor(tmp_path / "out", device="cpu")(np.zeros((64, 96, 3), np.uint8))
    assert result.segment_ids.shape == (64, 96)


def test_command_line_reports_the_error_and_writes_nothing(tmp_path, capsys):
    state = detectron2_state()
    del state["roi_heads.mask_head.mask_fcn3.bias"]
    source = write(tmp_path / "model.pkl", {"model": state})
    write_json(tmp_path / "data.json", CATEGORIES)
    out = tmp_path / "out"
    assert main(["convert", str(source), "-o", str(out), "--categories", str(tmp_path / "data.json")]) == 1
    assert "missing: ibpp.mask_heads.0.convs.1.0.bias (8,)" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.json", "model.pkl"]


def test_any_missing_weight_raises():
    whole, kinds = detectron2_state(), Categories.from_json(CATEGORIES)
    to_model(convert(whole), kinds)
    for name in list(whole)[:-2]:  # the last two are not weights
        with pytest.raises(RefineError, match=r"missing|blocks of"):
            to_model(convert({k: v for k, v in whole.items() if k != name}), kinds)


def test_any_weight_of_another_shape_raises():
    whole, kinds = detectron2_state(), Categories.from_json(CATEGORIES)
    for name, value in list(whole.items())[:-2:4]:
        for changed in (np.concatenate([value, value[:1]]), value.ravel()[:0]):
            with pytest.raises(RefineError, match=r"shape|missing|blocks of|categories"):
                to_model(convert(whole | {name: changed}), kinds)


@pytest.mark.parametrize(
    "name",
    [
        "backbone.bottom_up.res2.0.conv1.bias",
        "roi_heads.keypoint_head.conv1.weight",
        "proposal_generator.rpn_head.conv.conv1.weight",
        "roi_heads.mask_head.mask_fcn5.weight",
    ],
)
def test_an_unexpected_weight_raises(name):
    state = detectron2_state() | {name: np.ones((8, 8, 3, 3), np.float32)}
    with pytest.raises(RefineError, match=r"unsupported layers, first|missing|unexpected"):
        to_model(convert(state), Categories.from_json(CATEGORIES))


def test_another_number_of_categories_raises():
    conversion = convert(detectron2_state())
    with pytest.raises(RefineError, match="80 things and 53 stuff classes, but the weights have 2 and 2"):
        to_model(conversion, Categories.from_json(read_json(COCO)))


def test_unknown_names_raise():
    with pytest.raises(RefineError, match=r"unknown names \(encoder.w"):
        convert({"encoder.w": np.ones(1)})


def test_errors_name_the_file(tmp_path):
    with pytest.raises(RefineError, match=r"none\.pkl: cannot be read \(No such file"):
        convert_file(tmp_path / "none.pkl", tmp_path / "out")
    save_file({"encoder.w": torch.ones(1)}, tmp_path / "odd.safetensors")
    with pytest.raises(RefineError, match=r"odd\.safetensors: weights: unknown names"):
        convert_file(tmp_path / "odd.safetensors", tmp_path / "out")


def test_detectron2_config_completes_the_weights(tmp_path):
    base = tmp_path / "base.yaml"
    base.write_text("MODEL: {PIXEL_STD: [57, 57, 58], RPN: {POST_NMS_TOPK_TEST: 500}}\nINPUT: {FORMAT: RGB}\n")
    path = tmp_path / "config.yaml"
    path.write_text(
        "_BASE_: base.yaml\nMODEL:\n  ROI_HEADS: {SCORE_THRESH_TEST: 0.2}\n"
        "  ROI_BOX_HEAD: {POOLER_TYPE: ROIAlign}\n"
        "  ANCHOR_GENERATOR: {SIZES: [[16], [32], [64], [128], [256]]}\n"
        "  PANOPTIC_FPN: {COMBINE: {STUFF_AREA_LIMIT: 64}}\nINPUT: {MIN_SIZE_TEST: 640}\n"
    )
    conversion = convert(detectron2_state(), read_settings(path))
    config = conversion.config
    assert (config.channels, config.pixel_std, config.pixel_mean) == ("RGB", (57, 57, 58), (1, 2, 3))
    assert (config.rpn.post_nms_top_n[1], config.rpn.anchor_sizes[0]) == (500, 16)
    assert (config.box_head.score_threshold, config.roi_aligned) == (0.2, False)
    assert (conversion.fusion.stuff_area, conversion.test_size) == (64, (640, 1333))
    path.write_text("MODEL: {RESNETS: {RES5_DILATION: 2}}")
    with pytest.raises(RefineError, match="RES5_DILATION is 2"):
        read_settings(path)


def test_refines_own_config_determines_the_network(tmp_path):
    write_json(tmp_path / "report.json", convert(detectron2_state()).report())
    settings = read_settings(tmp_path / "report.json")
    settings.model.box_head.max_detections = 7
    assert convert(detectron2_state(), settings).config.box_head.max_detections == 7
    settings.model.fpn_channels = 16
    with pytest.raises(RefineError, match="of another shape: fpn"):
        to_model(convert(detectron2_state(), settings), Categories.from_json(CATEGORIES))


def caffe2_name(name: str) -> str | None:
    """Return the name in MSRA's and FAIR's files of a ResNet weight in torchvision."""
    leaf = {"weight": "w", "bias": "b"}
    folded = {"weight": "s", "bias": "b"}
    parts = name.split(".")
    if parts[0] in ("conv1", "bn1"):
        return (
            "conv1_w"
            if parts[0] == "conv1"
            else {"weight": "res_conv1_bn_s", "bias": "res_conv1_bn_b"}.get(parts[1])
        )
    if parts[0] == "fc":
        return f"fc1000_{leaf[parts[1]]}"
    stage, block = int(parts[0][-1]) + 1, parts[1]
    if parts[2] == "downsample":
        branch, is_norm = "branch1", parts[3] == "1"
    else:
        branch, is_norm = f"branch2{' abc'[int(parts[2][-1])]}", parts[2].startswith("bn")
    if is_norm and parts[-1] not in folded:
        return None
    return f"res{stage}_{block}_{branch}_" + (f"bn_{folded[parts[-1]]}" if is_norm else leaf[parts[-1]])


@pytest.mark.parametrize("build", [resnet50, pytest.param(resnext101_32x8d, marks=pytest.mark.slow)])
def test_caffe2_backbone(tmp_path, build):
    """Weights with statistics folded into scale and shift, as in MSRA's files, give the same features."""
    original = build(weights=None)
    blobs = {caffe2_name(k): v.numpy() for k, v in original.state_dict().items()}
    del blobs[None]
    blobs |= {"conv1_b": np.ones(64, np.float32), "res2_0_branch2a_b": np.zeros(64, np.float32)}
    source = write(tmp_path / "R.pkl", blobs)
    conversion = convert_file(source, tmp_path / "r.safetensors")
    assert set(conversion.left) == {"conv1_b", "res2_0_branch2a_b", "fc1000_w", "fc1000_b"}
    assert conversion.config.channels == "BGR"
    plain = build is resnet50
    assert conversion.config.pixel_std == ((1, 1, 1) if plain else (57.375, 57.12, 58.395))
    assert conversion.config.backbone.stride_in_1x1 == plain
    config = BackboneConfig(
        conversion.config.backbone.name, weights=str(tmp_path / "r.safetensors"), norm="frozen_bn"
    )
    backbone = build_backbone(config)
    load_pretrained(backbone, config)
    x = torch.randn(1, 3, 64, 64)
    original.eval()
    for module in original.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 0.0  # folded statistics have no epsilon
    with torch.no_grad():
        expected = original.maxpool(original.relu(original.bn1(original.conv1(x))))
        for n, got in enumerate(backbone.eval()(x), 1):
            expected = getattr(original, f"layer{n}")(expected)
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_torchvision_backbone(tmp_path, capsys):
    original = resnet50(weights=None)
    torch.save(original.state_dict(), tmp_path / "r50.pth")
    out = tmp_path / "r50.safetensors"
    assert main(["convert", str(tmp_path / "r50.pth"), "-o", str(out)]) == 0
    assert '"channels": "RGB"' in capsys.readouterr().out
    config = BackboneConfig("resnet50", weights=str(out), norm="frozen_bn")
    backbone = build_backbone(config)
    load_pretrained(backbone, config)
    assert torch.equal(backbone.layer4[2].conv3.weight, original.layer4[2].conv3.weight)
    assert main(["convert", str(tmp_path / "r50.pth"), "-o", str(tmp_path / "folder")]) == 1
    assert "contains only a backbone" in capsys.readouterr().err
