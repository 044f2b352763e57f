"""Pickles of weights: their code never runs, and their memory is bounded."""

import os
import pickle
import tracemalloc

import numpy as np
import pytest
import torch
from helpers.detectron2_files import CATEGORIES, detectron2_state, write

from refine.checkpoint.convert.convert import convert_file, read_checkpoint
from refine.checkpoint.folder import load_model
from refine.errors import RefineError
from refine.files import write_json


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
