"""Weight files: all common layouts are read, and every claim of a file is checked."""

import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from refine.errors import RefineError
from refine.tensors import fit_weights, load_weights, read_shapes, read_weights, write_weights


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    "wrap",
    [
        lambda m: m.state_dict(),
        lambda m: dict(m.named_parameters()) | dict(m.named_buffers()),  # nn.Parameter, with gradients
        lambda m: {"model": m.state_dict(), "epoch": 3, "optimizer": {"state": {}}},
        lambda m: {"state_dict": {f"module.{k}": v for k, v in m.state_dict().items()}},
        lambda m: {"state_dict": {f"model._orig_mod.{k}": v for k, v in m.state_dict().items()}},
        lambda m: {"model": {"w": torch.zeros(1)}, "model_ema": AveragedModel(m).state_dict()},
        lambda m: {"ema": {"updates": 3, "module": m.state_dict()}, "model": None},
        lambda m: {"ema": {"decay": 0.9}, "model": m.state_dict()},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_common_checkpoint_layouts(tmp_path, wrap, zipped):
    model = network()
    torch.save(wrap(model), tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    read, expected = read_weights(tmp_path / "w.pth"), model.state_dict()
    assert set(read) == set(expected)
    assert all(torch.equal(read[name], value) for name, value in expected.items())
    assert not any(value.requires_grad for value in read.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_floats_of_every_width(tmp_path, dtype, suffix):
    path = tmp_path / f"w{suffix}"
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in network().state_dict().items()}
    write_weights(path, state) if suffix == ".safetensors" else saved(path, state)
    model = network()
    load_weights(model, path)
    assert torch.equal(model[0].weight, state["0.weight"].float())


@pytest.mark.parametrize("zipped", [True, False])
def test_a_tensor_larger_than_its_data_is_rejected(tmp_path, zipped):
    path = tmp_path / "w.pth"
    torch.save({"w": torch.zeros(1).expand(10**9)}, path, _use_new_zipfile_serialization=zipped)
    assert path.stat().st_size < 4096
    with pytest.raises(RefineError, match=r"w\.pth: w has the shape \(1000000000,\)"):
        read_weights(path)
    many = torch.randn(10_000)
    torch.save({str(n): many for n in range(1000)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(RefineError, match="bytes, of which the file holds"):
        read_weights(path)


def test_the_advice_of_torch_to_run_code_is_not_passed_on(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"II*\0 a TIFF image")
    with pytest.raises(RefineError, match=r"w\.pth: cannot be read as weights \(it is not a file of torch\.save"):
        read_weights(tmp_path / "w.pth")


def test_archives_that_torch_does_not_write_are_rejected(tmp_path):
    """A storage that claims more than its record, and a compressed one, which may be a decompression bomb."""
    source = zipfile.ZipFile(saved(tmp_path / "whole.pth", {"w": torch.zeros(1000)}))
    for name, compression in (("short.pth", zipfile.ZIP_STORED), ("packed.pth", zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(tmp_path / name, "w", compression) as archive:
            for entry in source.infolist():
                data = source.read(entry)
                short = name == "short.pth" and entry.filename.endswith("data/0")
                archive.writestr(entry.filename, data[:8] if short else data)
        with pytest.raises(RefineError, match=name):
            read_weights(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"w": torch.eye(3).to_sparse()}, "w is a torch.sparse_coo tensor"),
        ({"w": torch.zeros(2, dtype=torch.complex64)}, "complex64"),
        ({"w": torch.empty(2, device="meta")}, "w is a"),
        ({"w": torch.tensor([1.0, float("nan")])}, "NaN or infinite values, first w"),
        ({"w": torch.tensor([float("inf")], dtype=torch.bfloat16)}, "NaN or infinite values, first w"),
        ({"epoch": 3}, "holds no weights by name"),
        ([torch.zeros(2)], "a list without tensors"),
        (network(), r"holds the Python object torch\.nn\.modules\.container\.Sequential, not only tensors"),
    ],
)
def test_other_content_is_rejected_in_one_line(tmp_path, content, message):
    with pytest.raises(RefineError, match=message) as caught:
        read_weights(saved(tmp_path / "w.pth", content))
    assert "w.pth" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_only_regular_files_are_read(tmp_path):
    for path in (tmp_path, Path("/dev/zero")):
        with pytest.raises(RefineError, match="no such file"):
            read_weights(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"0.weight": torch.ones(4, 3, 3, 3, dtype=torch.int8)}, r"0\.weight is torch\.int8"),
        ({"0.weight": torch.zeros(4, 3, 3, 3)}, r"0\.weight \(4, 3, 3, 3\) is all zero"),
        ({"1.running_var": torch.full((4,), torch.nan)}, r"first 1\.running_var"),
        (
            {"0.weight": torch.ones(4, 3, 3, 1)},
            r"1 of another shape: 0\.weight \(4, 3, 3, 1\), expected \(4, 3, 3, 3\)",
        ),
        ({"stray": torch.ones(1)}, r"1 unexpected: stray"),
        ({"0.bias": None}, r"1 missing: 0\.bias \(4,\)"),
    ],
)
def test_invalid_weights_leave_the_module_unchanged(change, message):
    model, state = network(), network().state_dict() | change
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(RefineError, match=rf"^w\.pth: .*{message}"):
        fit_weights(model, {k: v for k, v in state.items() if v is not None}, "w.pth")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_optional_weights_are_missing_together_or_not_at_all():
    model, state = network(), network().state_dict()
    fit_weights(model, {k: v for k, v in state.items() if not k.startswith("2.")}, "w.pth", optional=("2.",))
    with pytest.raises(RefineError, match=r"missing: 2\.bias"):
        fit_weights(model, {k: v for k, v in state.items() if k != "2.bias"}, "w.pth", optional=("2.",))


def test_shapes_come_from_the_header(tmp_path):
    write_weights(tmp_path / "w.safetensors", network().state_dict())
    assert read_shapes(tmp_path / "w.safetensors") == {k: tuple(v.shape) for k, v in network().state_dict().items()}


def test_weights_are_written_completely_or_not_at_all(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RefineError, match="cannot be written"):
        write_weights(tmp_path / "file" / "w.safetensors", {"w": torch.ones(1)})
    with pytest.raises(RefineError, match="float16: 1 of 2 tensors hold NaN or infinite values, first w"):
        write_weights(tmp_path / "w.safetensors", {"w": torch.tensor(1e5), "v": torch.ones(1)}, half=True)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
