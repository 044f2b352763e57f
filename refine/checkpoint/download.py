"""Download of a file over http(s), which resumes after an interruption."""

from __future__ import annotations

import http.client
import shutil
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import BinaryIO

from refine.errors import RefineError

_ATTEMPTS = 3
_TIMEOUT = 30.0
"""Seconds without data after which a connection is considered lost."""
_CHUNK = 1 << 20


class _InterruptedError(Exception):
    """Connection that ended before the file was complete; a new one can resume."""


def download(url: str, part: Path, fix: str, limit: float) -> None:
    """Download the rest of a file, in several attempts if the connection breaks.

    Args:
        url: address of the file, http:// or https://.
        part: destination; if it exists, it holds the beginning of the file.
        fix: what to do if the server cannot be reached, for the message.
        limit: maximum size in bytes.

    Raises:
        RefineError: the file cannot be downloaded, does not fit on the disk, its size differs from that stated by
            the server, or it is larger than `limit`.
        OSError: it cannot be written.
    """
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
