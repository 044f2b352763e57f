"""Download of files over http(s) to a cache, with verification. This module does not import torch."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import BinaryIO

from refine.errors import RefineError
from refine.files import user_cache, write_error

_ATTEMPTS = 3
_TIMEOUT = 30.0
"""Seconds without data after which a connection is considered lost."""
_CHUNK = 1 << 20


class _InterruptedError(Exception):
    """Connection that ended before the file was complete; a new one can resume."""


def cache_folder() -> Path:
    """Return the folder of downloaded and converted weights: `REFINE_CACHE`, or refine in the user's cache.

    Raises:
        RefineError: there is neither.
    """
    if folder := os.environ.get("REFINE_CACHE"):
        return Path(folder)
    if cache := user_cache():
        return cache
    raise RefineError("no folder for weights: the user has no home folder; set REFINE_CACHE to a folder")


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(url: str, path: Path, digest: str = "", limit: float = 16e9, fix: str = "") -> Path:
    """Download a file unless it exists; resume an earlier download that was interrupted.

    Args:
        url: address of the file, http:// or https://.
        path: destination; until the file is complete and verified its name has the suffix ".part".
        digest: first hexadecimal digits of its SHA-256; "" skips verification.
        limit: maximum size in bytes.
        fix: what to do if the server cannot be reached, for the message; by default to bring the file by hand.

    Returns:
        `path`.

    Raises:
        RefineError: the file cannot be downloaded or written, its size differs from that stated by the server, it
            is larger than `limit`, or its digest differs. The message says where to put a manual download.
    """
    if path.is_file():
        _check(path, digest, f"remove it, or replace it with {url}")
        return path
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fix = fix or f"connect to the network, or download the file elsewhere and put it at {path}"
        _download(url, part, fix, limit)
        try:
            _check(part, digest, f"{url} is not the published file; try again, or download it from elsewhere")
        except RefineError:
            part.unlink()
            raise
        part.replace(path)
    except OSError as error:
        raise write_error(path, error) from error
    return path


def _check(path: Path, digest: str, fix: str) -> None:
    if digest and not (found := digest_of(path)).startswith(digest):
        raise RefineError(f"{path}: its SHA-256 begins with {found[: len(digest)]}, expected {digest}; {fix}")


def _download(url: str, part: Path, fix: str, limit: float) -> None:
    for attempt in range(_ATTEMPTS):
        before = _size(part)
        try:
            _continue(url, part, limit)
            return
        except urllib.error.HTTPError as error:
            if error.code == 416 and before:  # the partial file is longer than that of the server
                part.unlink()
                continue
            raise _unreachable(url, fix, f"the server returned {error.code} {error.reason}") from error
        except _InterruptedError as error:
            if attempt + 1 == _ATTEMPTS:
                raise RefineError(
                    f"{url}: interrupted {_ATTEMPTS} times ({error}); run the command again to resume"
                ) from error
        except (urllib.error.URLError, http.client.HTTPException, ValueError) as error:
            raise _unreachable(url, fix, getattr(error, "reason", None) or error) from error
    raise _unreachable(url, fix, "the server does not send the file from its beginning")


def _unreachable(url: str, fix: str, reason: object) -> RefineError:
    return RefineError(f"{url}: cannot be downloaded ({reason}); {fix}")


def _continue(url: str, part: Path, limit: float) -> None:
    """Request the missing rest of a partial file once, and append it."""
    have = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
        resumed = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        start = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        if max(start, total or 0) > limit:
            raise RefineError(f"{url}: expected at most {limit:.0f} bytes, got {total}; it is another file")
        if total is not None and total - start > shutil.disk_usage(part.parent).free:
            raise RefineError(f"{part}: {total} bytes do not fit on the disk; free space or set REFINE_CACHE")
        with part.open("ab" if resumed else "wb") as file:
            _copy(response, file, url, start, total, limit)


def _copy(response: BinaryIO, file: BinaryIO, url: str, done: int, total: int | None, limit: float) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(url.rpartition("/")[2], total=total, completed=done)
        while True:
            try:
                chunk = response.read(_CHUNK)
            except (http.client.HTTPException, OSError) as error:  # a reset, or a time-out
                raise _InterruptedError(str(error) or type(error).__name__) from error
            if not chunk:
                break
            file.write(chunk)
            done += len(chunk)
            if done > limit:
                raise RefineError(f"{url}: expected at most {limit:.0f} bytes, got more; it is another file")
            progress.update(task, completed=done)
    if total is not None and done != total:
        raise _InterruptedError(f"received {done} of {total} bytes")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
