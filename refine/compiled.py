"""Loops as machine code, compiled by numba once per machine.

Importing numba takes most of a second of CPU, more than PQ of a small data set. So its machine code is kept in the
user's cache as a plain object file, which later processes load by llvmlite alone in a tenth of the time.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import importlib.util
import os
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm
import numpy as np

from refine.errors import WriteError
from refine.files import write_bytes

BARE: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
"""Options of numba for a kernel: nothing in it calls Python."""

_DIGEST = 32
"""Bytes of the SHA-256 that opens a kept file: LLVM must not see a damaged one."""

_LIBC = ("memset", "memcpy", "memmove")
"""Functions that LLVM itself may call in place of loops."""

_loading = threading.Lock()


class Kernel:
    """A function of integers and arrays that runs without Python's lock.

    Args:
        module: where it is defined: `kernel`, made by numba's `njit` with `BARE` and one signature of `int64` and
            pointers; it raises nothing and returns an `int64`. The module is imported only to compile it.
    """

    def __init__(self, module: str) -> None:
        self.module = module
        self._engine: llvm.ExecutionEngine | None = None  # owns the code
        self._call: Callable[..., int] | None = None

    def __call__(self, *arguments: np.ndarray | int) -> int:
        """Run it; arrays are C-contiguous and of the types that the signature points to."""
        if self._call is None:
            with _loading:
                self._call = self._call or self._load(len(arguments))
        result, error = ctypes.c_int64(), ctypes.c_void_p()
        numbers = [a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments]
        status = self._call(ctypes.addressof(result), ctypes.addressof(error), *numbers)
        assert status == 0, f"{self.module}: status {status}"
        return result.value

    def _load(self, count: int) -> Callable[..., int]:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        cpu, features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
        machine = llvm.Target.from_default_triple().create_target_machine(
            cpu=cpu, features=features, opt=3, jit=True, codemodel="jitdefault"
        )
        source = _source(self.module)
        for name in re.findall(rb"^from (refine\.[\w.]+) import", source, re.MULTILINE):  # constants
            source += _source(name.decode())
        made_by = "\n".join([llvmlite.__version__, machine.triple, cpu, features]).encode()
        path = _folder() / f"{self.module}-{hashlib.sha256(source + made_by).hexdigest()[:24]}.o"
        code = _read(path)
        if code is None:
            code = _compile(self.module, machine, count)
            with suppress(WriteError):  # without a cache the next process compiles it again
                write_bytes(path, hashlib.sha256(code).digest() + code)
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self._engine.finalize_object()
        # Pointers are passed as integers, which all 64-bit conventions pass alike.
        function = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_int64] * (count + 2))
        return function(self._engine.get_function_address("kernel"))


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "refine", "kernels")


def _source(module: str) -> bytes:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).read_bytes()


def _read(path: Path) -> bytes | None:
    """The machine code of a kept file; None if there is none, or it is damaged."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    code = data[_DIGEST:]
    return code if hashlib.sha256(code).digest() == data[:_DIGEST] else None


def _compile(module: str, machine: llvm.TargetMachine, count: int) -> bytes:
    """An object file with the function `kernel`, of numba's calling convention: addresses of the result and of an
    error come before the arguments, a status is returned.

    Raises:
        RuntimeError: the code is not self-contained, or numba has another convention.
    """
    kernel = importlib.import_module(module).kernel
    code = llvm.parse_assembly(kernel.inspect_llvm(kernel.signatures[0]))
    entries = [f for f in code.functions if not f.is_declaration and f.linkage == llvm.Linkage.external]
    missing = [f.name for f in code.functions if f.is_declaration and not f.name.startswith(("llvm.", *_LIBC))]
    if missing or len(entries) != 1 or len(list(entries[0].arguments)) != count + 2:
        raise RuntimeError(f"{module}: numba made {[f.name for f in entries]}, which call {missing}")
    entries[0].name = "kernel"
    return machine.emit_object(code)
