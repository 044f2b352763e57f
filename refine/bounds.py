"""Ranges of config fields, declared with the fields.

@dataclass
class OptimConfig:
    lr: float = bounded(0.02, least=0)

check_bounds(OptimConfig(lr=-1), "optim")  # RefineError: optim.lr is -1; give at least 0
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from numbers import Real
from typing import Any

from refine.errors import RefineError

LARGEST = 2**63 - 1
"""Largest magnitude that a field accepts: the range of torch's int64."""


@dataclass(frozen=True)
class Bounds:
    """Range of a number, or of each number of a list.

    Attributes:
        least, most: inclusive ends of the range.
        above, below: exclusive ends of the range.
        filled: whether a list must hold at least one number.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    filled: bool = False

    def hold(self, value: object) -> bool:
        """Return whether a value is a number in the range; NaN and infinity never are."""
        if not isinstance(value, Real) or isinstance(value, bool):
            return False
        number: Any = value
        return (
            abs(number) <= LARGEST  # false for NaN and infinity
            and (self.least is None or number >= self.least)
            and (self.most is None or number <= self.most)
            and (self.above is None or number > self.above)
            and (self.below is None or number < self.below)
        )

    def __str__(self) -> str:
        if self.least is not None and self.most is not None:
            return f"a number from {self.least} to {self.most}"
        ends = (("at least", self.least), ("above", self.above), ("at most", self.most), ("below", self.below))
        words = " and ".join(f"{word} {end}" for word, end in ends if end is not None)
        return words if words.startswith("at ") else f"a number {words}".strip()


ANY = Bounds()


def bounded(
    default: Any,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    filled: bool = False,
) -> Any:
    """Declare a dataclass field with a default and a range; see `Bounds`."""
    metadata = {"bounds": Bounds(least, most, above, below, filled)}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def check_bounds(config: Any, where: str = "") -> None:
    """Check the fields of a dataclass and of its nested dataclasses.

    Numbers must be finite and in their range, text must be a possible file name, and only optional fields may be
    None.

    Args:
        config: dataclass instance.
        where: name of `config` in messages, such as "optim".

    Raises:
        RefineError: names the field, its value and its range.
    """
    for field in dataclasses.fields(config):
        name, value = f"{where}.{field.name}" if where else field.name, getattr(config, field.name)
        if value is None and "None" not in str(field.type):
            raise RefineError(f"{name} is null; give a value, or leave the field out")
        if dataclasses.is_dataclass(value):
            check_bounds(value, name)
        elif value is not None:
            _check(value, field.metadata.get("bounds"), name)


def _check(value: Any, bounds: Bounds | None, name: str) -> None:
    is_list = isinstance(value, list | tuple)
    values = value if is_list else [value]
    if bounds is not None and bounds.filled and not values:
        raise RefineError(f"{name} is []; give at least one number")
    for each in values:
        if isinstance(each, str) and not _is_file_name(each):
            raise RefineError(f"{name} is {each[:80]!r}; give text without NUL characters or lone surrogates")
        if bounds is not None or isinstance(each, float):
            allowed = bounds or ANY
            if not allowed.hold(each):
                shown = repr(list(value) if is_list else value)
                shown = shown if len(shown) <= 80 else f"{shown[:77]}…"
                raise RefineError(f"{name} is {shown}; give {allowed}{' each' if is_list else ''}")


def _is_file_name(text: str) -> bool:
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False
