"""Loops as machine code, compiled by numba once per machine.

Importing numba takes most of a second of CPU, more than PQ of a small data set. So its machine code is kept in the
user's cache: where a linker is installed on Linux, as a shared library, which later processes load in a
millisecond, else as an object file, which llvmlite alone loads in a tenth of a second.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import threading
import zlib
from collections.abc import Callable
from contextlib import suppress
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import llvmlite
import numpy as np

from refine.errors import WriteError
from refine.files import user_cache, write_bytes

if TYPE_CHECKING:
    import llvmlite.binding as llvm

BARE: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
"""Options of numba for a kernel: nothing in it calls Python."""

_CHECKSUM = 4
"""Bytes of the CRC-32 that ends a kept file: a damaged one must not be run."""

_LIBC = ("memset", "memcpy", "memmove")
"""Functions that LLVM itself may call in place of loops."""

_NO_BYTES = ctypes.c_char * 0
_loading = threading.Lock()


class Kernel:
    """A function of integers and arrays that runs without Python's lock.

    Args:
        module: where it is defined: `kernel`, made by numba's `njit` with `BARE` and one signature of `int64` and
            pointers; it raises nothing and returns an `int64`. The module is imported only to compile it.
    """

    def __init__(self, module: str) -> None:
        self.module = module
        self._owner: ctypes.CDLL | llvm.ExecutionEngine | None = None  # of the code
        self._call: Callable[..., int] | None = None

    def __call__(self, *arguments: np.ndarray | int) -> int:
        """Run it; arrays are C-contiguous and of the types that the signature points to."""
        if self._call is None:
            with _loading:
                self._call = self._call or self._load(len(arguments))
        result, error = ctypes.c_int64(), ctypes.c_void_p()
        numbers = [_address(a) if isinstance(a, np.ndarray) else a for a in arguments]
        status = self._call(ctypes.addressof(result), ctypes.addressof(error), *numbers)
        assert status == 0, f"{self.module}: status {status}"
        return result.value

    def _load(self, count: int) -> Callable[..., int]:
        source = _source(self.module) + _source(__name__)  # which determines how the code is called
        for line in source.splitlines():
            if line.startswith(b"from refine."):  # constants
                source += _source(line.split()[1].decode())
        # Pointers are passed as integers, which all 64-bit conventions pass alike.
        function = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_int64] * (count + 2))
        origin = source + f"{llvmlite.__version__}\n{_processor()}".encode()
        library = _path(self.module, origin, "so")
        if library and (_read(library, origin) is not None or _link(self.module, count, library, origin)):
            with suppress(OSError):  # for example a file system that does not execute files
                self._owner = ctypes.CDLL(library)
                return function(("kernel", self._owner))
        return function(self._load_object(source, count))

    def _load_object(self, source: bytes, count: int) -> int:
        """Load an object file by LLVM; return the address of the function."""
        import llvmlite.binding as llvm  # a large library

        machine = _machine(jit=True, codemodel="jitdefault")
        host = [llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()]
        origin = source + "\n".join([llvmlite.__version__, machine.triple, *host]).encode()
        path = _path(self.module, origin, "o")
        code = None if path is None else _read(path, origin)
        if code is None:
            code = _compile(self.module, machine, count)
            if path is not None:
                _keep(path, code, origin)
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
        self._owner = engine
        return engine.get_function_address("kernel")


def _address(array: np.ndarray) -> int:
    """Return where the values of an array begin in memory."""
    if array.flags.writeable:  # ctypes then takes a quarter of NumPy's time
        return ctypes.addressof(_NO_BYTES.from_buffer(array.data))
    return array.ctypes.data


def _path(module: str, origin: bytes, suffix: str) -> str | None:
    """Return the file that keeps the code; None for a user without a cache, who compiles it in each process.

    Args:
        module: see `Kernel`.
        origin: all that determines the code: the source, what compiles it, and the processor. A short checksum of
            it is enough for the name, because the file holds all of it.
        suffix: "so" or "o".
    """
    cache = user_cache()
    return cache and os.path.join(cache, "kernels", f"{module}-{zlib.crc32(origin):08x}.{suffix}")


def _source(module: str) -> bytes:
    """Return the source of a module of refine without importing it: most of these modules need numba."""
    root = os.path.dirname(os.path.dirname(__file__))
    with open(os.path.join(root, *module.split(".")) + ".py", "rb") as file:
        return file.read()


def _processor() -> str:
    """The kind of the first processor and its instruction sets, on Linux; empty elsewhere."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = takewhile(str.strip, file)
            kinds = ("vendor_id", "cpu family", "model", "flags", "CPU implementer", "CPU part", "Features")
            return "".join(line for line in lines if line.startswith(kinds))
    except OSError:
        return ""


def _read(path: str, origin: bytes) -> bytes | None:
    """The machine code of a kept file; None if there is none, or it is damaged or of another origin."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError:
        return None
    content = data[:-_CHECKSUM]
    valid = content.endswith(origin) and _checksum(content) == data[-_CHECKSUM:]
    return content.removesuffix(origin) if valid else None


def _keep(path: str, code: bytes, origin: bytes) -> bool:
    """Keep machine code; return whether that succeeded. Without a cache the next process compiles it again."""
    content = code + origin
    with suppress(WriteError):
        write_bytes(path, content + _checksum(content))
        return True
    return False


def _checksum(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(_CHECKSUM, "little")


def _link(module: str, count: int, path: str, origin: bytes) -> bool:
    """Keep a function as a shared library; return whether that succeeded. It needs a linker and temporary files."""
    import shutil  # slow to import, all four
    import subprocess
    import tempfile
    from pathlib import Path

    linker = shutil.which("cc")
    if linker is None or not _processor():
        return False
    with suppress(OSError, WriteError), tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "kernel.o"), Path(folder, "kernel.so")
        write_bytes(source, _compile(module, _machine(reloc="pic"), count))
        command = [linker, "-shared", "-o", str(library), str(source)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        return done.returncode == 0 and _keep(path, library.read_bytes(), origin)
    return False


def _machine(**options: Any) -> llvm.TargetMachine:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    host = {"cpu": llvm.get_host_cpu_name(), "features": llvm.get_host_cpu_features().flatten()}
    return llvm.Target.from_default_triple().create_target_machine(**host, opt=3, **options)


def _compile(module: str, machine: llvm.TargetMachine, count: int) -> bytes:
    """An object file with the function `kernel`, of numba's calling convention: addresses of the result and of an
    error come before the arguments, a status is returned.

    Raises:
        RuntimeError: the code is not self-contained, or numba has another convention.
    """
    import llvmlite.binding as llvm

    kernel = importlib.import_module(module).kernel
    code = llvm.parse_assembly(kernel.inspect_llvm(kernel.signatures[0]))
    entries = [f for f in code.functions if not f.is_declaration and f.linkage == llvm.Linkage.external]
    missing = [f.name for f in code.functions if f.is_declaration and not f.name.startswith(("llvm.", *_LIBC))]
    if missing or len(entries) != 1 or len(list(entries[0].arguments)) != count + 2:
        raise RuntimeError(f"{module}: numba made {[f.name for f in entries]}, which call {missing}")
    entries[0].name = "kernel"
    return machine.emit_object(code)
