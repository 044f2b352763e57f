"""Reading files within limits, and writing them so that a reader never sees half of one."""

from __future__ import annotations

import errno
import gc
import json
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import Any

from refine.errors import RefineError, WriteError, shown

MAX_BYTES = 2**31
"""Largest file that is read whole."""

MAX_PIXELS = 2**27
"""Largest height × width of an image or id map, checked from the header, before anything is decoded. Reading
an image takes at most 12 bytes per pixel."""


def write_bytes(path: str | Path, data: bytes | bytearray | memoryview) -> None:
    """Write a file, and the folders above it, so that it is whole or not there; replaces a file of this name.

    The data are on the disk before the file gets its name: errors that a full disk, a quota or a network
    raises late are seen.

    Raises:
        WriteError: the file cannot be written. A file that was there before is still there.
    """
    path = Path(path)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with suppress(OSError):  # it has got its name, or was never made
            temporary.unlink()


def write_error(path: str | Path, error: OSError) -> WriteError:
    """Return what to raise when `path` cannot be written."""
    reason = error.strerror or str(error)
    return WriteError(f"{path}: cannot be written ({reason}); free space or choose another folder")


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any, indent: int | None = None) -> None:
    """Write JSON as `write_bytes` does; NaN is refused (it is not JSON)."""
    write_text(path, json.dumps(value, indent=indent, allow_nan=False))


def read_bytes(path: str | Path) -> bytes:
    """Read a whole file.

    Raises:
        RefineError: missing, not a regular file (a device or a pipe may never end), or over `MAX_BYTES`.
    """
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(status.st_mode):
            raise RefineError(f"{path}: is not a regular file; give one")
        if status.st_size > MAX_BYTES:
            raise RefineError(f"{path}: has {status.st_size:,} bytes, expected at most {MAX_BYTES:,}; split it")
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError as error:
        raise RefineError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except ValueError as error:  # a NUL in the name
        raise RefineError(f"{path}: cannot be read ({error}); check the path") from error


def read_json(path: str | Path) -> Any:
    """Read JSON in UTF-8 (or UTF-16 and UTF-32, as the standard allows).

    Raises:
        RefineError: `read_bytes` fails, or the content is not JSON or nested too deeply.
    """
    data = read_bytes(path)
    try:
        with _no_collection():
            return json.loads(data)
    except ValueError as error:
        raise RefineError(f"{path}: is not valid JSON ({error}); write it again") from error
    except RecursionError as error:
        raise RefineError(f"{path}: is nested too deeply to be read; write it again") from error


@contextmanager
def _no_collection() -> Iterator[None]:
    """Suspend the garbage collector, which takes half the time of parsing: of its many objects none is garbage."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def name_problem(name: Any) -> str | None:
    """Return what keeps a `file_name` from naming a file inside a folder, or None.

    Files may come from strangers: absolute paths and `..` would read anything on the machine.
    """
    if not isinstance(name, str) or not name:
        return f"file_name is {shown(name)}; expected the name of a file"
    path = PurePath(name)
    if path.is_absolute() or ".." in path.parts:
        return f"file_name {shown(name)} leads out of the data set's folder; expected a path below it"
    try:
        encoded = os.fsencode(name)
    except UnicodeEncodeError:  # a lone surrogate
        encoded = b"\0"
    if b"\0" not in encoded and len(encoded) <= 1024:
        return None
    return f"file_name {shown(name)} is not a possible name of a file; rename it"
