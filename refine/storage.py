"""Files by local path, or by URL of an object store (`s3://bucket/folder`, `gs://…`, whatever fsspec opens).

Local paths are `Path`s and go through `refine.files`. URLs are `Url`s: for them alone, fsspec and `tempfile` are
imported.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from refine.errors import RefineError, WriteError, missing_extra
from refine.files import replacing as replacing_local
from refine.files import write_bytes as write_local


@dataclass(frozen=True)
class Url:
    """Address of a file or folder in an object store, with the operations of `Path` that writers need."""

    text: str

    def __str__(self) -> str:
        return self.text

    def __truediv__(self, name: str) -> Url:
        return Url(f"{self.text.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        return self.text.rstrip("/").rpartition("/")[2]

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    def resolve(self) -> Url:
        return self

    def is_file(self) -> bool:
        return bool(_ask(self, "isfile"))

    def is_dir(self) -> bool:
        return bool(_ask(self, "isdir"))

    def exists(self) -> bool:
        return bool(_ask(self, "exists"))

    def glob(self, pattern: str) -> Iterator[Url]:
        """Yield the files that match a pattern below this folder, sorted."""
        protocol = self.text.partition("://")[0]
        for path in sorted(_ask(Url(glob.escape(self.text)) / pattern, "glob")):
            yield Url(f"{protocol}://{path}")

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the file; raises WriteError if that is not permitted."""
        with _failures(self, writing=True):
            system, path = _open(self)
            try:
                system.rm_file(path)
            except FileNotFoundError:  # some stores raise it, others succeed
                if not missing_ok:
                    raise


Location = Path | Url
Stamp = list[int | str]
"""Values that change with the content of a file; see `stamp`."""


def location(text: str | Path | Url) -> Location:
    """Return the `Url` of a text with a scheme such as "s3://", or the `Path` of any other, also of "file://"."""
    if isinstance(text, Url):
        return text
    if isinstance(text, str):
        text = text.removeprefix("file://")
    return Url(text.rstrip("/")) if isinstance(text, str) and "://" in text else Path(text)


def write_bytes(place: str | Location, data: bytes | bytearray | memoryview) -> None:
    """Write or replace a file, completely or not at all.

    Raises:
        WriteError: the file cannot be written.
    """
    if not isinstance(place, Url):
        write_local(place, data)
        return
    with _failures(place, writing=True):
        system, path = _open(place)
        system.pipe_file(path, bytes(data))


def write_json(place: Location, value: Any, indent: int | None = None) -> None:
    """Write JSON as `refine.files.write_json` does."""
    write_bytes(place, json.dumps(value, indent=indent, allow_nan=False).encode())


@contextmanager
def replacing(place: Location) -> Iterator[BinaryIO]:
    """Open a file for writing that replaces `place` when the block ends, as `refine.files.replacing` does."""
    if not isinstance(place, Url):
        with replacing_local(place) as file:
            yield file
        return
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        yield file  # type: ignore[misc]  # a wrapper with the same methods
        file.flush()
        with _failures(place, writing=True):
            system, path = _open(place)
            system.put_file(file.name, path)


@contextmanager
def local_copy(place: Location) -> Iterator[Path]:
    """Provide a local path with the content of a file: the file itself, or a temporary copy.

    Raises:
        RefineError: the file cannot be read. Errors of the block about the copy name the original.
    """
    if not isinstance(place, Url):
        yield place
        return
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / (PurePosixPath(place.name).name or "file")
        with _failures(place):
            system, path = _open(place)
            system.get_file(path, str(copy))
        try:
            yield copy
        except RefineError as error:
            raise type(error)(str(error).replace(str(copy), str(place))) from error


def read_start(place: Location, count: int) -> bytes:
    """Return the first bytes of a file, which is not transferred as a whole."""
    if isinstance(place, Url):
        with _failures(place):
            system, path = _open(place)
            return bytes(system.cat_file(path, start=0, end=count))
    with place.open("rb") as file:
        return file.read(count)


def modified(place: Location) -> float:
    """Return the time of the last change in seconds since 1970; raises OSError or RefineError without the file."""
    if not isinstance(place, Url):
        return place.stat().st_mtime
    time: float = _ask(place, "modified").timestamp()
    return time


def stamp(place: Location) -> Stamp | None:
    """Return values that change with the content of a file; None if there is no file.

    They are the size in bytes and the time of the last change in ns since 1970; in an object store, its entity tag
    replaces the time if it has one.
    """
    if not isinstance(place, Url):
        try:
            status = place.stat()
        except OSError:
            return None
        return [status.st_size, status.st_mtime_ns]
    with _failures(place):
        system, path = _open(place)
        try:
            found = system.info(path)
        except FileNotFoundError:
            return None
        return [found["size"], found.get("ETag") or found.get("etag") or str(system.modified(path))]


def list_folder(folder: Url, recursive: bool) -> list[Url]:
    """Return the files of a folder, or of its subfolders too, sorted."""
    protocol = folder.text.partition("://")[0]
    with _failures(folder):
        system, path = _open(folder)
        found = system.find(path, maxdepth=None if recursive else 1)
    return [Url(f"{protocol}://{path}") for path in sorted(found)]


def _ask(place: Url, question: str) -> Any:
    with _failures(place):
        system, path = _open(place)
        return getattr(system, question)(path)


def _open(place: Url) -> tuple[Any, str]:
    """Return the file system of a URL, and the path in it."""
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise missing_extra(f"{place}: needs fsspec", "ray") from error
    try:
        system, path = url_to_fs(str(place), use_listings_cache=False)
    except ImportError as error:  # of the package for this scheme, which fsspec names
        raise RefineError(f"{place}: {error}") from error
    except ValueError as error:
        raise RefineError(f"{place}: cannot be opened ({error}); check the address") from error
    return system, path


@contextmanager
def _failures(place: Url, writing: bool = False) -> Iterator[None]:
    """Convert the errors of storage clients, each of which has classes of its own, to RefineError."""
    try:
        yield
    except RefineError:
        raise
    except Exception as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        if writing:
            raise WriteError(f"{place}: cannot be written ({reason}); check address and permissions") from error
        if isinstance(error, FileNotFoundError):
            reason = "no such file"
        raise RefineError(f"{place}: cannot be read ({reason}); check address and permissions") from error
