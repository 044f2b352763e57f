"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import json
import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from refine.errors import RefineError, WriteError


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


def read_json(path: str | Path) -> Any:
    """Read JSON.

    Raises:
        RefineError: no such file, or not JSON; says which and where.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RefineError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except (ValueError, RecursionError) as error:
        raise RefineError(f"{path}: is not valid JSON ({error}); write it again") from error
