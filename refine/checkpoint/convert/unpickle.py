"""Reading pickled NumPy arrays of strangers without running their code.

A pickle is a program that may call any importable function. This reader knows the few names that arrays are
pickled under, and puts its own stand-ins in the place of even those: nothing of the file's choosing runs.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from refine.errors import RefineError

_KINDS = "biufc"  # booleans, numbers; no objects, strings or records


class _DType:
    """Stands in for numpy.dtype."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code = code
        self.order: Any = "="

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]

    def numpy(self) -> np.dtype:
        dtype = np.dtype(str(self.code))
        if dtype.kind not in _KINDS or dtype.subdtype is not None:
            raise pickle.UnpicklingError(f"arrays of {self.code!r} are not read")
        return dtype.newbyteorder(self.order) if self.order in ("<", ">") else dtype


class _Array:
    """Stands in for numpy.ndarray; filled by the pickle's second step."""

    value: np.ndarray

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        if isinstance(data, str):  # written by Python 2
            data = data.encode("latin1")
        self.value = _array(data, dtype, shape, "F" if fortran else "C")


def _array(data: bytes, dtype: _DType, shape: tuple[int, ...], order: str) -> np.ndarray:
    if not isinstance(data, bytes | bytearray) or not isinstance(dtype, _DType):
        raise pickle.UnpicklingError("arrays of objects are not read")
    array = np.frombuffer(data, dtype.numpy()).reshape(shape, order="F" if order == "F" else "C")
    return array.astype(array.dtype.newbyteorder("="))  # own, writable, this machine's byte order


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _from_buffer(data: bytes, dtype: _DType, shape: tuple[int, ...], order: str) -> _Array:
    result = _Array()
    result.value = _array(data, dtype, shape, order)
    return result


def _scalar(dtype: _DType, data: bytes | str) -> Any:
    return _array(data.encode("latin1") if isinstance(data, str) else data, dtype, (), "C")[()]


def _encode(text: str, encoding: str) -> bytes:
    """Python 3 writes bytes so in old protocols."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r} is not read")
    return text.encode("latin1")


_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _DType,
    ("numpy", "ndarray"): _Array,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): OrderedDict,
}
for _core in ("numpy.core", "numpy._core"):
    _KNOWN[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
    _KNOWN[f"{_core}.multiarray", "scalar"] = _scalar
    _KNOWN[f"{_core}.numeric", "_frombuffer"] = _from_buffer


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


def load_arrays(path: Path) -> Any:
    """Contents of a pickle of dicts, lists, numbers, texts and NumPy arrays, from Python 2 or 3.

    Raises:
        RefineError: no such file; not a pickle; or it asks for anything else.
    """
    try:
        with path.open("rb") as file:
            return _finished(_Unpickler(file, encoding="latin1").load())
    except OSError as error:
        raise RefineError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except Exception as error:  # a damaged pickle fails in every possible way
        raise RefineError(
            f"{path}: is not a pickle of plain arrays ({error}); give detectron2's .pkl, or a .pth file"
        ) from error


def _finished(value: Any) -> Any:
    """Replace the stand-ins by what they hold."""
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, dict):
        return {k: _finished(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finished(v) for v in value]
    return value
