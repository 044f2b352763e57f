"""Ranges of a config's fields, written where the fields are.

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
"""Magnitude of the largest number that a field takes: what torch's integers hold."""


@dataclass(frozen=True)
class Bounds:
    """Range of a number, or of each number of a list.

    Attributes:
        least, most: the ends of the range, which belong to it.
        above, below: ends that do not belong to it.
        filled: the list holds at least one number.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    filled: bool = False

    def hold(self, value: object) -> bool:
        """Whether a value is a number of the range; NaN and infinity never are."""
        if not isinstance(value, Real) or isinstance(value, bool):
            return False
        number: Any = value
        return (
            abs(number) <= LARGEST  # not so NaN and infinity
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
    """Field of a dataclass with a default and a range; see `Bounds`."""
    metadata = {"bounds": Bounds(least, most, above, below, filled)}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def check_bounds(config: Any, where: str = "") -> None:
    """Check the fields of a dataclass, and of the dataclasses in it.

    Numbers lie in their ranges and are finite; texts can be names of files; only what may be None is.

    Args:
        config: the dataclass.
        where: its name, for messages.

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
    several = isinstance(value, list | tuple)
    values = value if several else [value]
    if bounds is not None and bounds.filled and not values:
        raise RefineError(f"{name} is []; give at least one number")
    for each in values:
        if isinstance(each, str) and not _can_be_a_name(each):
            raise RefineError(f"{name} is {each[:80]!r}; give text without NUL characters and lone surrogates")
        if bounds is not None or isinstance(each, float):
            allowed = bounds or ANY
            if not allowed.hold(each):
                shown = repr(list(value) if several else value)
                shown = shown if len(shown) <= 80 else f"{shown[:77]}…"
                raise RefineError(f"{name} is {shown}; give {allowed}{' each' if several else ''}")


def _can_be_a_name(text: str) -> bool:
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False
