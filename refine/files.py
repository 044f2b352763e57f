"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from refine.errors import RefineError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on failure.

    The parent folder is made. The temporary name keeps the suffix, which writers choose formats by.

    Raises:
        RefineError: the folder cannot be made or written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RefineError(f"{path.parent}: cannot make this folder ({error.strerror}); name another") from error
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise RefineError(
            f"{path}: cannot be written ({error.strerror or error}); free space or name another"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any, indent: int | None = None) -> None:
    """Write JSON atomically, UTF-8; NaN is refused (it is not JSON)."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=indent, allow_nan=False), encoding="utf-8")


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
    except ValueError as error:
        raise RefineError(f"{path}: is not valid JSON ({error}); write it again") from error
