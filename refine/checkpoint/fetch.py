"""Files of the web in a cache, downloaded once and verified. This module does not import torch."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from refine.errors import RefineError
from refine.files import user_cache, write_error


def cache_folder() -> Path:
    """Return the folder of downloaded and converted weights: `REFINE_CACHE`, or refine in the user's cache.

    Raises:
        RefineError: there is neither.
    """
    if folder := os.environ.get("REFINE_CACHE"):
        return Path(folder)
    if cache := user_cache():
        return Path(cache)
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
        from refine.checkpoint.download import download  # HTTP and TLS take 25 ms to import

        download(url, part, fix, limit)
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
