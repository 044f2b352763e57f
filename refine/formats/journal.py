"""Journal of finished results, so that a killed run can be resumed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from refine.errors import RefineError, WriteError
from refine.files import append_bytes, write_error

try:
    import fcntl
except ImportError:  # Windows, where two runs in one folder go unnoticed
    fcntl = None  # type: ignore[assignment]


class Journal:
    """Append-only file with one line of JSON per finished image, synced to disk before the next image begins.

    The first line contains the settings of the run. Only one process at a time can open a journal.

    Args:
        path: path of the file; it and its folder are created if necessary.
        settings: settings that the results depend on.
        keep: whether to keep existing lines, whose settings must be equal; otherwise start over.

    Attributes:
        entries: parsed lines, without the settings.

    Raises:
        RefineError: the lines to keep were written with other settings.
        WriteError: the file cannot be written, or another process is writing it.
    """

    def __init__(self, path: Path, settings: dict[str, Any], keep: bool = False) -> None:
        self.path = path
        self.entries: list[Any] = []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b", buffering=0)
        except OSError as error:
            raise write_error(path, error) from error
        try:
            if fcntl is not None:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise WriteError(
                f"{path}: another run is writing to this file; wait for it or choose another --out"
            ) from error
        if keep:
            self._read(settings)
        if not self.entries:
            self._cut(0)
            self._write(settings)

    def _read(self, settings: dict[str, Any]) -> None:
        """Read complete lines; remove an incomplete last line."""
        self._file.seek(0)
        content = self._file.read()
        end = content.rfind(b"\n") + 1
        try:
            lines = [json.loads(line) for line in content[:end].splitlines()]
        except ValueError as error:
            raise RefineError(f"{self.path}: is damaged ({error}); run again without --resume") from error
        if lines and lines[0] != settings:
            self._file.close()
            raise other_settings(self.path, lines[0], settings)
        self.entries = lines[1:]
        self._cut(end)

    def append(self, *entries: Any) -> None:
        """Append one line per entry and sync the file."""
        self._write(*entries)
        self.entries += entries

    def remove(self) -> None:
        """Delete the file after all results are written elsewhere."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise write_error(self.path, error) from error
        self._file.close()

    def close(self) -> None:
        """Close the file and keep it for a later run."""
        self._file.close()

    def _write(self, *values: Any) -> None:
        try:
            data = "".join(json.dumps(value, allow_nan=False) + "\n" for value in values).encode()
            append_bytes(self._file, data)
            os.fsync(self._file.fileno())
        except OSError as error:
            raise write_error(self.path, error) from error

    def _cut(self, size: int) -> None:
        try:
            self._file.truncate(size)
        except OSError as error:
            raise write_error(self.path, error) from error


def other_settings(path: Path, then: Any, now: dict[str, Any]) -> RefineError:
    """Return the error for results that were written with other settings; it names the first difference."""
    then = then if isinstance(then, dict) else {}
    key = next(key for key in now | then if now.get(key) != then.get(key))
    return RefineError(
        f"{path}: was written with {key} {json.dumps(then.get(key))}, this run has {json.dumps(now.get(key))}; "
        "give the same options, or run without --resume to start again"
    )
