"""Images from standard input and from addresses, brought into a temporary folder."""

from __future__ import annotations

import atexit
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from refine.checkpoint.fetch import fetch
from refine.cli.given import GIVEN
from refine.errors import RefineError
from refine.files import MAX_BYTES, name_problem, write_bytes

STDIN = "-"
"""Source that stands for one encoded image on standard input."""


def local_sources(sources: Sequence[str]) -> list[str]:
    """Replace `-` and http(s) addresses by paths of temporary files, which are removed when the process exits.

    Messages name the sources instead (see `as_given`).
    A file of an address has the last part of its path as name. It has no modification time, so that `--resume`
    predicts it again only if its size has changed.

    Raises:
        RefineError: standard input is empty or a terminal, or a file cannot be downloaded or is too large.
    """
    return [_local(source) for source in sources]


def _local(source: str) -> str:
    if source == STDIN:
        return _read_stdin()
    address = urlsplit(source)
    if address.scheme.lower() not in ("http", "https"):
        return source
    name = PurePosixPath(unquote(address.path)).name or "image"
    if name_problem(name):
        raise RefineError(f"{source}: its last part is not a possible file name; download it and give the file")
    path = fetch(
        source,
        _temporary_folder() / name,
        limit=MAX_BYTES,
        fix="check the address, or download the file elsewhere and give its path",
    )
    os.utime(path, (0, 0))
    host = address.netloc.rpartition("@")[2]
    GIVEN[str(path)] = f"{address.scheme}://{host}{address.path}"  # without passwords and signatures
    return str(path)


def _read_stdin() -> str:
    if sys.stdin.isatty():
        raise RefineError("-: standard input is a terminal; redirect an image file to it")
    data = sys.stdin.buffer.read(MAX_BYTES + 1)
    if not data:
        raise RefineError("-: standard input is empty; redirect an image file to it")
    if len(data) > MAX_BYTES:
        raise RefineError(f"-: expected at most {MAX_BYTES:,} bytes on standard input; give the file")
    path = _temporary_folder() / "stdin"
    write_bytes(path, data)
    GIVEN[str(path)] = STDIN
    return str(path)


def _temporary_folder() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="refine-")
    atexit.register(folder.cleanup)
    return Path(folder.name)
