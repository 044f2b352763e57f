"""Read NumPy arrays from a pickle without running its code or allocating more than its size.

A pickle is a program that may call any importable function. This reader knows the few names that arrays are
pickled under, and puts stand-ins in the place of even those: they only keep what they are given. Arrays are made
afterwards, once it is known that the file holds their bytes.
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
    """Stands in for numpy.dtype."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = code
        self.order: Any = "="

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]

    def numpy(self) -> np.dtype:
        code = self.code.decode() if isinstance(self.code, bytes) else self.code
        dtype = np.dtype(code) if isinstance(code, str) and len(code) < 16 else np.dtype(object)
        if dtype.kind not in _KINDS or dtype.subdtype is not None:
            raise pickle.UnpicklingError("it holds arrays of something else than numbers")
        return dtype.newbyteorder(self.order) if self.order in ("<", ">") else dtype


class _Encoded:
    """Stands in for the bytes that Python 3 writes as text in old protocols."""

    def __init__(self, text: Any, encoding: Any) -> None:
        if not isinstance(text, str) or encoding != "latin1":
            raise pickle.UnpicklingError("it holds text of an unknown encoding")
        self.text = text


class _Array:
    """Stands in for numpy.ndarray; filled by the pickle's second step."""

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
    """NumPy scalars are no weights."""


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
    """Python's own unpickler in Python: the one in C allocates its memo up to the largest number in the file."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")
        self.left = len(data)

    def _load_bytearray(self: Any) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(self.read(size))  # what is there; the original allocates `size` bytes first

    dispatch: ClassVar[dict[int, Any]] = pickle._Unpickler.dispatch | {pickle.BYTEARRAY8[0]: _load_bytearray}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return self._ordered
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module[:80]}.{name[:80]}") from None

    def _ordered(self, pairs: Any = ()) -> OrderedDict:
        self.left -= len(pairs)  # one list may be given many times
        if self.left < 0:
            raise pickle.UnpicklingError("it repeats one list of entries")
        return OrderedDict(pairs)


def load_arrays(path: Path) -> Any:
    """Read a pickle of dicts, lists, numbers, texts and NumPy arrays, from Python 2 or 3.

    Returns:
        Its content; arrays are found in dicts, four levels deep.

    Raises:
        RefineError: no such file; not a pickle; or it asks for anything else.
    """
    if path.exists() and not path.is_file():
        raise RefineError(f"{path}: is not a file; check the path")
    try:
        data = path.read_bytes()
        return _Resolver(len(data)).resolve(_Unpickler(data).load())
    except OSError as error:
        raise RefineError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except Exception as error:  # a damaged pickle fails in every possible way
        raise RefineError(
            f"{path}: is not a pickle of plain arrays ({first_line(error)}); give detectron2's .pkl, or a .pth file"
        ) from error


class _Resolver:
    """Makes arrays of the stand-ins, together no larger than the file.

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
                raise pickle.UnpicklingError("it holds arrays of objects")
        if isinstance(data, _Encoded):
            data = data.text
        self.left -= len(data)
        if self.left < 0:
            raise pickle.UnpicklingError("its arrays are larger than the file")
        if isinstance(data, str):  # written by Python 2, or as text
            data = data.encode("latin1")
        values = np.frombuffer(data, dtype.numpy()).reshape(shape, order="F" if fortran else "C")
        return values.astype(values.dtype.newbyteorder("="))  # own, writable, this machine's byte order
