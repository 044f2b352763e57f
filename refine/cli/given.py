"""Sources by the names that the user gave them, where a temporary file stands for one."""

from __future__ import annotations

GIVEN: dict[str, str] = {}
"""Source by the path of its temporary file."""


def as_given(text: str) -> str:
    """Replace the paths of temporary files in a message by the sources that they stand for."""
    for path, source in GIVEN.items():
        text = text.replace(path, source)
    return text
