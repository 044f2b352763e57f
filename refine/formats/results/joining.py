"""Joining of the parts of all images into one file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any


def json_list(values: Iterable[Any]) -> Iterator[bytes]:
    """Yield a JSON list, one value per line."""
    before = b"[\n"
    for value in values:
        yield before + json.dumps(value, allow_nan=False).encode()
        before = b",\n"
    yield b"[]" if before == b"[\n" else b"\n]"
