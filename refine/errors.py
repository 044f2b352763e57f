"""Errors that a user can fix, and formatting of untrusted text in messages."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable
from typing import Any

_UNPRINTABLE = "[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
_VALUES = reprlib.Repr()
_VALUES.maxstring = _VALUES.maxother = _VALUES.maxlong = 60


class RefineError(Exception):
    """Invalid input. The message names the file, the field and the fix.

    The command line prints the message without a traceback and exits with 1; library callers may catch it.
    Programming errors raise `ValueError`, `TypeError` or `AssertionError`.

    Examples:
        >>> try:
        ...     refine.Predictor("no such model")
        ... except RefineError as error:
        ...     print(str(error)[:28])
        no such model: no such model
    """


class WriteError(RefineError):
    """A file cannot be written (disk full, read-only or no permission); the next file would fail too."""


def missing_extra(what: str, extra: str) -> RefineError:
    """Return the error for an optional dependency that is not installed.

    Args:
        what: feature and the package that it needs, such as "the page needs Gradio".
        extra: extra in pyproject.toml that installs the package.
    """
    return RefineError(f"{what}; install it in the checkout of refine: pip install -e '.[{extra}]'")


def printable(text: str, most: int | None = None) -> str:
    """Return text on one line, with control characters escaped.

    Args:
        text: any string, such as a category name from a file.
        most: maximum number of characters of `text` to keep; longer text ends in "…".
    """
    if most is not None and len(text) > most:
        text = text[: most - 1] + "…"
    return re.sub(_UNPRINTABLE, lambda found: found[0].encode("unicode_escape").decode(), text)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean …?)" with the known name most similar to an unknown one; "" if none is similar.

    Args:
        name: name that is not in the list, as given by the user.
        known: names in the list.
    """
    from difflib import get_close_matches  # only after an error

    names = {each.lower(): each for each in known}
    found = get_close_matches(name.lower()[:100], names, 1)
    return f" (did you mean {names[found[0]]}?)" if found else ""


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun: "1 image", "1,200 images".

    Args:
        number: number of things.
        noun: noun in the singular.
        plural: plural if it is not `noun` with an "s".
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def shown(value: Any) -> str:
    """Return the `repr` of a value from a file, shortened to fit a message."""
    return _VALUES.repr(value)


OUT_OF_MEMORY = (
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "allocate memory",
    "could not create a memory",
    "Insufficient memory",
)
"""Words of which PyTorch and OpenCV use some if memory ran out."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception of Python, NumPy, PyTorch or OpenCV means that memory ran out."""
    if isinstance(error, MemoryError):
        return True
    foreign = isinstance(error, RuntimeError) or type(error).__module__.startswith("cv2")
    return foreign and any(words in str(error) for words in OUT_OF_MEMORY)
