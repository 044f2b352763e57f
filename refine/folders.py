"""Folders that are written in one step."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from refine.errors import RefineError
from refine.files import write_error

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
"""Values of Linux's fcntl.h and stdio.h: paths are relative to the current folder, and both names stay in use."""


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
    if folder.exists() and not folder.is_dir():
        raise RefineError(f"{folder}: expected a folder, got a file; {fix}")
    if folder.exists() and (first := next(folder.iterdir(), None)):
        raise RefineError(f"{folder}: is not an empty folder, but holds {first.name}; {fix}")
