"""Journal of finished results, so that a killed run can be resumed."""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from refine.errors import RefineError, WriteError
from refine.files import append_bytes, write_error
from refine.formats.result_files import remove
from refine.formats.settings import other_settings
from refine.storage import Location, Url, local_copy, write_bytes

JOURNAL = "unfinished.jsonl"
"""Name of the journal in a folder of results."""

STORE_EVERY = 30.0
"""Seconds between two files of lines in an object store."""

try:
    import fcntl
except ImportError:  # Windows, where two runs in one folder go unnoticed
    fcntl = None  # type: ignore[assignment]


class Journal:
    """Append-only file with one line of JSON per finished image, synced to disk before the next image begins.

    The first line contains the settings of the run. Only one process at a time can open a journal. Lines are read
    one by one when they are needed, so that memory does not grow with the results.

    Args:
        path: path of the file; it and its folder are created if necessary.
        settings: settings that the results depend on.
        keep: whether to keep existing lines, whose settings must be equal; otherwise start over.

    Raises:
        RefineError: the lines to keep were written with other settings.
        WriteError: the file cannot be written, or another process is writing it.
    """

    def __init__(self, path: Path, settings: dict[str, Any], keep: bool = False) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b", buffering=0)
        except OSError as error:
            raise write_error(path, error) from error
        try:
            _lock(path, self._file)
        except WriteError:
            self._file.close()
            raise
        if keep and self._cut_incomplete_line():
            (_, first) = next(self._lines())
            if first != settings:
                self._file.close()
                raise other_settings(path, first, settings)
        else:
            self._cut(0)
            self.append(settings)

    def entries(self) -> Iterator[tuple[int, Any]]:
        """Yield the offset in bytes and the value of each line after the settings."""
        lines = self._lines()
        next(lines)
        return lines

    def append(self, value: Any) -> int:
        """Append a line, sync the file, and return the line's offset in bytes."""
        try:
            offset = os.fstat(self._file.fileno()).st_size
            append_bytes(self._file, (json.dumps(value, allow_nan=False) + "\n").encode())
            os.fsync(self._file.fileno())
        except OSError as error:
            raise write_error(self.path, error) from error
        return offset

    def read(self, offsets: Iterator[int]) -> Iterator[Any]:
        """Yield the values of the lines at these offsets."""
        with self.path.open("rb") as file:
            for offset in offsets:
                if file.tell() != offset:
                    file.seek(offset)
                yield json.loads(file.readline())

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

    def _lines(self) -> Iterator[tuple[int, Any]]:
        offset = 0
        with self.path.open("rb") as file:
            for line in file:
                try:
                    yield offset, json.loads(line)
                except ValueError as error:
                    raise RefineError(f"{self.path}: is damaged ({error}); run again without --resume") from error
                offset += len(line)

    def _cut_incomplete_line(self) -> int:
        """Remove an incomplete last line; return the size of the file in bytes."""
        end, last = 0, b""
        with self.path.open("rb") as file:
            for line in file:
                end, last = end + len(line), line
        if not last.endswith(b"\n"):
            end -= len(last)
            self._cut(end)
        return end

    def _cut(self, size: int) -> None:
        try:
            self._file.truncate(size)
        except OSError as error:
            raise write_error(self.path, error) from error


class StoredJournal(Journal):
    """Journal in an object store, where nothing can be appended: a folder of files with lines in order.

    The lines are collected in a local file, and stored every `STORE_EVERY` seconds and at the end. A run that is
    killed loses those that were not stored; `resume` predicts their images again.

    Args:
        url: folder of the files.
        settings, keep: as for `Journal`.

    Raises:
        RefineError: the lines to keep were written with other settings.
        WriteError: the folder cannot be read or written.
    """

    def __init__(self, url: Url, settings: dict[str, Any], keep: bool = False) -> None:
        self._url, self._folder = url, tempfile.TemporaryDirectory()
        local = Path(self._folder.name) / url.name
        try:
            stored = list(url.glob("*.jsonl"))
        except RefineError as error:
            raise WriteError(str(error)) from error
        if keep:
            with local.open("wb") as file:
                for part in stored:
                    with local_copy(part) as copy:
                        file.write(copy.read_bytes())
        else:
            for part in stored:
                part.unlink()
            stored = []
        self._parts, self._stored, self._time = len(stored), local.stat().st_size if keep else 0, time.monotonic()
        super().__init__(local, settings, keep)
        self._store()

    def append(self, value: Any) -> int:
        offset = super().append(value)
        if time.monotonic() - self._time >= STORE_EVERY:
            self._store()
        return offset

    def remove(self) -> None:
        super().remove()
        for part in self._url.glob("*.jsonl"):
            part.unlink()
        self._folder.cleanup()

    def close(self) -> None:
        self._store()
        super().close()
        self._folder.cleanup()

    def _store(self) -> None:
        """Store the lines that are not stored yet as one file."""
        self._time = time.monotonic()
        with self.path.open("rb") as file:
            file.seek(self._stored)
            if new := file.read():
                self._parts += 1
                write_bytes(self._url / f"{self._parts:08}.jsonl", new)
                self._stored += len(new)


def open_journal(place: Location, settings: dict[str, Any], keep: bool = False) -> Journal:
    """Open the journal at a path, or that in an object store; see `Journal`."""
    if isinstance(place, Url):
        return StoredJournal(place, settings, keep)
    return Journal(place, settings, keep)


def remove_journal(path: Location) -> None:
    """Remove a file of a journal unless another process is writing it.

    Raises:
        WriteError: another process is writing it, or it cannot be removed.
    """
    if isinstance(path, Path):
        with suppress(FileNotFoundError), path.open("rb") as file:
            _lock(path, file, shared=True)  # other parts of this run may be removing it, too
    remove(path)


def _lock(path: Path, file: IO[bytes], shared: bool = False) -> None:
    """Lock an open file; raise WriteError if another process has locked it."""
    if fcntl is None:
        return
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        raise WriteError(
            f"{path}: another run is writing to this file; wait for it or choose another --out"
        ) from error


def journal_path(out: Location, part: str = "") -> Location:
    """Return the path of the journal of a run, or of one that writes a part of the results, such as "1-of-8"."""
    return out / (f"unfinished.{part}.jsonl" if part else JOURNAL)


def journals(out: Location) -> Iterator[tuple[str, Location]]:
    """Yield the part (see `journal_path`) and the path of each file of the journals in a folder of results."""
    for path in out.glob("unfinished*.jsonl"):
        if name := re.fullmatch(r"unfinished(?:\.(\d+-of-\d+))?\.jsonl", path.name):
            for file in path.glob("*.jsonl") if isinstance(path, Url) else [path]:
                yield name[1] or "", file
