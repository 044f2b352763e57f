"""Size-limited reading and atomic writing of files."""

from __future__ import annotations

import ctypes
import errno
import gc
import json
import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

from refine.errors import RefineError, WriteError, shown

MAX_BYTES = 2**31
"""Maximum size in bytes of a file that is read into memory."""

MAX_PIXELS = 2**27
"""Maximum height × width of an image or id map, checked from the header before decoding. Reading an image takes
at most 16 bytes per pixel."""

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
"""Values of Linux's fcntl.h and stdio.h: paths are relative to the current folder, and both names stay in use."""


def user_cache() -> Path | None:
    """Return refine's folder in the user's cache, or None for a user without a home folder.

    Relative paths are ignored, as the XDG Base Directory Specification demands.
    """
    for folder in (os.environ.get("XDG_CACHE_HOME", ""), os.path.expanduser("~/.cache")):
        if os.path.isabs(folder):
            return Path(folder, "refine")
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
    path = Path(path)
    temporary = path.with_name(f".{os.urandom(16).hex()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with suppress(OSError):  # already renamed, or never created
            temporary.unlink()


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


def exchange(one: str | Path, other: str | Path) -> bool:
    """Let two files or folders trade names in one step; return False where the system or file system cannot.

    Linux alone has a call for it (`man 2 renameat2`), and network file systems mostly refuse it.
    """
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # another system, whose C library lacks it
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))


@contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a new folder; on success sync its files and let it replace `folder`.

    An earlier folder is replaced only if all of its files have names of the new ones: nothing else is deleted.
    Readers always find the old or the new folder, however the process ends. If the file system cannot exchange two
    names, there is a moment without a folder; a process killed then leaves the old folder as .*.NAME.old, and
    `find_model` raises an error that names it.

    An earlier folder that is empty is kept, and what is new is moved into it in the order in which it was written:
    it may be a mounted volume, which cannot be replaced, or a shell's working directory.

    Raises:
        RefineError: the disk is full or not writable, or see `check_replaceable`.
    """
    import shutil  # for folders alone: with the compression modules that it loads, it takes 3 ms

    folder = Path(folder).resolve()  # keeps a symbolic link
    check_replaceable(folder)
    is_empty = folder.is_dir() and not any(folder.iterdir())
    temporary = (folder if is_empty else folder.parent) / f".{os.urandom(4).hex()}.{folder.name}"
    try:
        temporary.mkdir(parents=True)
        yield temporary
        new = sorted(temporary.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        for path in new:
            if path.is_file():  # `write_bytes` has synced those in subfolders
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        if is_empty:
            for path in new:
                path.rename(folder / path.name)
        else:
            check_replaceable(folder, [path.name for path in new])
            _replace_folder(folder, temporary)
    except OSError as error:
        raise write_error(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace_folder(folder: Path, temporary: Path) -> None:
    """Let a folder of files replace another one, which may be missing."""
    import shutil

    if not folder.exists():
        temporary.rename(folder)
    elif not exchange(temporary, folder):
        old = folder.with_name(f"{temporary.name}.old")
        folder.rename(old)
        try:
            temporary.rename(folder)
        except OSError:
            old.rename(folder)
            raise
        shutil.rmtree(old)


def check_replaceable(folder: str | Path, names: Collection[str] | None = None) -> None:
    """Raise RefineError if `folder` is a file, or holds anything that is not among the names to be written."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise RefineError(f"{folder}: expected a folder, got a file; choose another path")
    if names is not None and folder.is_dir():
        lost = sorted(path.name for path in folder.iterdir() if path.name not in names or path.is_dir())
        if lost:
            raise RefineError(f"{folder}: {lost[0]} in it would be deleted; choose another path, or move it away")


def check_empty(folder: str | Path, fix: str) -> None:
    """Raise RefineError if `folder` is a file, or holds anything; `fix` says what to do."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RefineError(f"{folder}: is not an empty folder; {fix}")


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

    JSON files are untrusted: absolute paths and `..` would give access to any file on the machine.
    """
    if not isinstance(name, str) or not name:
        return f"file_name is {shown(name)}; expected the name of a file"
    if os.path.isabs(name) or ".." in name.replace(os.sep, "/").split("/"):  # pathlib would take ten times as long
        return f"file_name {shown(name)} leads out of the data set's folder; expected a path below it"
    try:
        encoded = os.fsencode(name)
    except UnicodeEncodeError:  # a lone surrogate
        encoded = b"\0"
    if b"\0" not in encoded and len(encoded) <= 1024:
        return None
    return f"file_name {shown(name)} is not a possible file name; rename it"
