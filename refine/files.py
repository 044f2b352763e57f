"""Size-limited reading and atomic writing of files."""

from __future__ import annotations

import errno
import gc
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from typing import TYPE_CHECKING, Any, BinaryIO

from refine.errors import RefineError, WriteError, shown

if TYPE_CHECKING:
    from pathlib import Path  # importing it takes 4 ms, as long as PQ of ten images

MAX_BYTES = 2**31
"""Maximum size in bytes of a file that is read into memory."""

MAX_PIXELS = 2**27
"""Maximum height × width of an image or id map, checked from the header before decoding. Reading an image takes
at most 16 bytes per pixel."""


def user_cache() -> str | None:
    """Return refine's folder in the user's cache, or None for a user without a home folder.

    Relative paths are ignored, as the XDG Base Directory Specification demands.
    """
    for folder in (os.environ.get("XDG_CACHE_HOME", ""), os.path.expanduser("~/.cache")):
        if os.path.isabs(folder):
            return os.path.join(folder, "refine")
    return None


def write_bytes(path: str | Path, data: bytes | bytearray | memoryview) -> None:
    """Write or replace a file atomically, and create its parent folders.

    The data are flushed to the disk before the file gets its name, so that late errors of a full disk, a quota or
    a network are raised here.

    Raises:
        WriteError: the file cannot be written. An earlier file of this name is unchanged.
    """
    with replacing(path) as file:
        file.write(data)


@contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for writing that replaces `path` when the block ends, as `write_bytes` does.

    If the block raises an exception, the new file is removed.

    Raises:
        WriteError: the file cannot be written. An earlier file of this name is unchanged.
    """
    folder = os.path.dirname(path)
    temporary = os.path.join(folder, f".{os.urandom(16).hex()}.tmp")
    try:
        os.makedirs(folder or ".", exist_ok=True)
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with suppress(OSError):  # already renamed, or never created
            os.unlink(temporary)


def append_bytes(file: FileIO, data: bytes) -> None:
    """Add to the end of a file, all of the data or nothing.

    Args:
        file: opened for appending, without a buffer.
        data: bytes to add.

    Raises:
        OSError: the disk is full or fails.
    """
    size = os.fstat(file.fileno()).st_size
    try:
        if file.write(data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        with suppress(OSError):  # a device has no size
            file.truncate(size)
        raise


def write_error(path: str | Path, error: OSError) -> WriteError:
    """Return the `WriteError` for a path that cannot be written."""
    reason = error.strerror or str(error)
    return WriteError(f"{path}: cannot be written ({reason}); free space or choose another folder")


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically; see `write_bytes`."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any, indent: int | None = None) -> None:
    """Write JSON atomically; see `write_bytes`. Raises ValueError for NaN, which is not JSON."""
    write_text(path, json.dumps(value, indent=indent, allow_nan=False))


def read_bytes(path: str | Path) -> bytes:
    """Read a whole file.

    Raises:
        RefineError: the file is missing, over `MAX_BYTES`, or not regular (a device or a pipe may never end).
    """
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(status.st_mode):
            raise RefineError(f"{path}: is not a regular file; give a regular file")
        if status.st_size > MAX_BYTES:
            raise RefineError(f"{path}: has {status.st_size:,} bytes, expected at most {MAX_BYTES:,}; split it")
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError as error:
        raise RefineError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except ValueError as error:  # a NUL in the name
        raise RefineError(f"{path}: cannot be read ({error}); check the path") from error


def read_json(path: str | Path) -> Any:
    """Read a JSON file in UTF-8, UTF-16 or UTF-32.

    Raises:
        RefineError: the file cannot be read, is not JSON, or is nested too deeply.
    """
    data = read_bytes(path)
    try:
        with no_collection():
            return json.loads(data)
    except ValueError as error:
        raise RefineError(f"{path}: is not valid JSON ({error}); write it again") from error
    except RecursionError as error:
        raise RefineError(f"{path}: is nested too deeply to be read; write it again") from error


@contextmanager
def no_collection() -> Iterator[None]:
    """Suspend the garbage collector, which would take a third of the time of reading a JSON and find no garbage."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def name_problem(name: Any) -> str | None:
    """Return why a `file_name` cannot name a file inside a folder; None if it can.

    JSON files are untrusted: absolute paths and `..` would give access to any file on the machine. A name that is
    not UTF-8 could be in no JSON or table that other programs read.
    """
    if not isinstance(name, str) or not name:
        return f"file_name is {shown(name)}; expected the name of a file"
    if os.path.isabs(name) or ".." in name.replace(os.sep, "/").split("/"):  # pathlib would take ten times as long
        return f"file_name {shown(name)} leads out of the data set's folder; expected a path below it"
    try:
        encoded = name.encode()
    except UnicodeEncodeError:  # lone surrogates, which Python reads other bytes as
        return f"file_name {shown(name)} is not UTF-8; rename it"
    if b"\0" not in encoded and len(encoded) <= 1024:
        return None
    return f"file_name {shown(name)} is not a possible file name; rename it"
