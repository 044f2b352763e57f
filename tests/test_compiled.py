"""Machine code is kept for the next process, and made anew where what was kept cannot be used."""

import shutil
import sys

import numpy as np
import pytest

from refine import compiled
from refine.compiled import Kernel

MODULE = "refine.formats.unfilter"


def first_run(kernel):
    """Decode one row of one pixel, R = 7, whose filter is None."""
    data = np.array([0, 7, 0, 0], np.uint8)
    positions, starts, ids = np.empty(5, np.int64), np.empty(1, np.int64), np.empty(1, np.int64)
    assert kernel(data, data, 1, 1, positions, starts, ids) == 1
    return int(starts[0]), int(ids[0])


@pytest.fixture(scope="module", params=["so", "o"])
def kept(request, tmp_path_factory):
    """A cache with the code, linked and, as without a linker, not linked."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        if request.param == "o":
            patch.setattr(shutil, "which", lambda name: None)
        elif shutil.which("cc") is None or not compiled._processor():
            pytest.skip("no linker")
        assert first_run(Kernel(MODULE)) == (0, 7)
        (file,) = (folder / "refine" / "kernels").iterdir()
        assert file.suffix == f".{request.param}"
        yield folder


def test_kept_code_is_not_compiled_again(kept, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(kept))
    monkeypatch.setattr(compiled, "_compile", None)
    if next(kept.glob("refine/kernels/*")).suffix == ".so":
        monkeypatch.setitem(sys.modules, "llvmlite.binding", None)  # slow to import
    assert first_run(Kernel(MODULE)) == (0, 7)


@pytest.mark.parametrize("change", ["damaged", "cut off", "other source", "other source, same name", "no folder"])
def test_what_cannot_be_used_is_compiled_again(kept, tmp_path, monkeypatch, change):
    (file,) = (kept / "refine" / "kernels").iterdir()
    data = file.read_bytes()
    copy = tmp_path / "refine" / "kernels" / file.name
    copy.parent.mkdir(parents=True)
    copy.write_bytes({"damaged": data[:-1] + bytes([data[-1] ^ 1]), "cut off": data[:20]}.get(change, data))
    if change.startswith("other source"):
        source = compiled._source
        monkeypatch.setattr(compiled, "_source", lambda module: source(module) + b"#")
    if change.endswith("same name"):  # as if the short checksum were the same
        monkeypatch.setattr(compiled, "_path", lambda *_: copy)
    monkeypatch.setenv("XDG_CACHE_HOME", str(copy if change == "no folder" else tmp_path))
    compilations, compile_ = [], compiled._compile
    monkeypatch.setattr(compiled, "_compile", lambda *what: compilations.append(1) or compile_(*what))
    assert first_run(Kernel(MODULE)) == (0, 7)
    assert compilations == ([1, 1] if change == "no folder" and file.suffix == ".so" else [1])
    if change in ("damaged", "cut off"):
        assert len(copy.read_bytes()) == len(data)
        assert first_run(Kernel(MODULE)) == (0, 7)
        assert compilations == [1]


def test_constants_of_other_modules_are_part_of_the_source(monkeypatch):
    read, source = [], compiled._source
    monkeypatch.setattr(compiled, "_source", lambda module: read.append(module) or source(module))
    monkeypatch.setattr(compiled, "_read", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Kernel("refine.evaluation.count")()
    assert {
        "refine.compiled",
        "refine.evaluation.count",
        "refine.evaluation.matching",
        "refine.formats.segments_info",
    } <= set(read)


def test_code_that_calls_python_is_refused(tmp_path, monkeypatch):
    (tmp_path / "dividing.py").write_text(
        "from numba import njit, types\n\n"
        "@njit(types.int64(types.int64, types.int64), no_cpython_wrapper=True, no_cfunc_wrapper=True)\n"
        "def kernel(a, b):\n    if b == 3:\n        raise ValueError(a)\n    return a\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(compiled, "_source", lambda module: b"")  # it is no module of refine
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(RuntimeError, match="dividing: numba made"):
        Kernel("dividing")(1, 2)


def _refuse(*_):
    raise OSError("failed to map segment from shared object")


@pytest.mark.parametrize(
    "failing", ["linker writes nothing", "linker is no program", "file system without execution"]
)
def test_without_a_usable_shared_library_llvm_loads_the_code(tmp_path, monkeypatch, failing):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if failing == "file system without execution":
        monkeypatch.setattr(compiled.ctypes, "CDLL", _refuse)
    else:
        linker = tmp_path / "cc"
        linker.write_text("#!/bin/sh\nexit 0\n" if failing == "linker writes nothing" else "\0")
        linker.chmod(0o755)
        monkeypatch.setattr(shutil, "which", lambda name: str(linker))
    assert first_run(Kernel(MODULE)) == (0, 7)


def test_without_a_home_folder_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compiled, "user_cache", lambda: None)
    assert first_run(Kernel(MODULE)) == (0, 7)
    assert not list(tmp_path.iterdir())
