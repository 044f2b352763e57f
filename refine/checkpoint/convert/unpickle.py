"""Reader of NumPy arrays from a pickle that does not run its code or allocate more than its size.

A pickle is a program that may call any importable function. This reader accepts only the few names used to pickle
arrays, and replaces even those by stand-ins that only store their arguments. Arrays are created afterwards, when
it is known that the file contains their bytes.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from refine.errors import RefineError
from refine.tensors import first_line

_KINDS = "biufc"  # booleans, numbers; no objects, strings or records


class _DType:
    """Stand-in for numpy.dtype."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = code
        self.order: Any = "="

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]

    def numpy(self) -> np.dtype:
        code = self.code.decode() if isinstance(self.code, bytes) else self.code
        dtype = np.dtype(code) if isinstance(code, str) and len(code) < 16 else np.dtype(object)
        if dtype.kind not in _KINDS or dtype.subdtype is not None:
            raise pickle.UnpicklingError("it contains arrays of values that are not numbers")
        return dtype.newbyteorder(self.order) if self.order in ("<", ">") else dtype


class _Encoded:
    """Stand-in for bytes, which Python 3 writes as text in old protocols."""

    def __init__(self, text: Any, encoding: Any) -> None:
        if not isinstance(text, str) or encoding != "latin1":
            raise pickle.UnpicklingError("it contains text of an unknown encoding")
        self.text = text


class _Array:
    """Stand-in for numpy.ndarray, whose state is set in a second step of the pickle."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    result = _Array()
    result.state = (1, shape, dtype, order == "F", data)
    return result


def _scalar(*_: Any) -> None:
    """Ignore NumPy scalars, which are not weights."""


_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _DType,
    ("numpy", "ndarray"): _Array,
    ("_codecs", "encode"): _Encoded,
}
for _core in ("numpy.core", "numpy._core"):
    _KNOWN[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
    _KNOWN[f"{_core}.multiarray", "scalar"] = _scalar
    _KNOWN[f"{_core}.numeric", "_frombuffer"] = _from_buffer


class _Unpickler(pickle._Unpickler):
    """Unpickler based on Python's implementation: the one in C allocates its memo up to the largest index used."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")
        self.left = len(data)

    def _load_bytearray(self: Any) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(self.read(size))  # reads available bytes; the original allocates `size` bytes first

    dispatch: ClassVar[dict[int, Any]] = pickle._Unpickler.dispatch | {pickle.BYTEARRAY8[0]: _load_bytearray}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return self._ordered
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it refers to {module[:80]}.{name[:80]}") from None

    def _ordered(self, pairs: Any = ()) -> OrderedDict:
        self.left -= len(pairs)  # the same list may be used many times
        if self.left < 0:
            raise pickle.UnpicklingError("it repeats one list of entries")
        return OrderedDict(pairs)


def load_arrays(path: Path) -> Any:
    """Read a pickle of dicts, lists, numbers, strings and NumPy arrays, written by Python 2 or 3.

    Returns:
        Content of the pickle; arrays are converted in dicts up to four levels deep.

    Raises:
        RefineError: the file is missing, is not a pickle, or contains anything else.
    """
    if path.exists() and not path.is_file():
        raise RefineError(f"{path}: is not a file; check the path")
    try:
        data = path.read_bytes()
        return _Resolver(len(data)).resolve(_Unpickler(data).load())
    except OSError as error:
        raise RefineError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except Exception as error:  # a damaged pickle may raise any exception
        raise RefineError(
            f"{path}: is not a pickle of plain arrays ({first_line(error)}); give detectron2's .pkl, or a .pth file"
        ) from error


class _Resolver:
    """Converts stand-ins to arrays that together are no larger than the file.

    Args:
        left: size of the file in bytes.
    """

    def __init__(self, left: int) -> None:
        self.left = left
        self.known: dict[int, Any] = {}

    def resolve(self, value: Any, depth: int = 4) -> Any:
        if id(value) in self.known:
            return self.known[id(value)]
        if isinstance(value, _Array):
            result: Any = self._array(value)
        elif isinstance(value, dict) and depth:
            result = {k: self.resolve(v, depth - 1) for k, v in value.items()}
        else:
            return value
        self.known[id(value)] = result
        return result

    def _array(self, array: _Array) -> np.ndarray:
        match array.state:
            case (
                _,
                tuple() as shape,
                _DType() as dtype,
                fortran,
                (bytes() | str() | _Encoded()) as data,
            ):
                pass
            case _:
                raise pickle.UnpicklingError("it contains arrays of objects")
        if isinstance(data, _Encoded):
            data = data.text
        self.left -= len(data)
        if self.left < 0:
            raise pickle.UnpicklingError("its arrays are larger than the file")
        if isinstance(data, str):  # written by Python 2, or as text
            data = data.encode("latin1")
        values = np.frombuffer(data, dtype.numpy()).reshape(shape, order="F" if fortran else "C")
        return values.astype(values.dtype.newbyteorder("="))  # writable copy in native byte order
