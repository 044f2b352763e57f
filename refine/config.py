"""Configs as plain values: a dataclass from JSON or YAML, strictly, and back."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from jsonargparse import ArgumentError, ArgumentParser

from refine.bounds import check_bounds
from refine.errors import RefineError

T = TypeVar("T")


def from_mapping(cls: type[T], values: Mapping[str, Any], source: str) -> T:
    """Build a dataclass from plain JSON or YAML values, strictly.

    Args:
        cls: a dataclass of this module or of the model's config.
        values: missing fields get their defaults.
        source: file and field, for messages.

    Raises:
        RefineError: an unknown field, a wrong type or a value out of its range; names it.
    """
    _check_structure(cls, values, source)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, "value")
    try:
        config = typing.cast(T, parser.instantiate(parser.parse_object({"value": dict(values)})).value)
    except (ArgumentError, TypeError, ValueError, OverflowError, RecursionError) as error:
        message = one_line(error).replace("value.", "")
        raise RefineError(f"{source}: {message}; correct the field") from error
    try:
        check_bounds(config)
    except RefineError as error:
        raise RefineError(f"{source}: {error}") from error
    return config


def _check_structure(cls: type, values: Any, source: str) -> None:
    """Raise RefineError where a part is no mapping, or a field is null that may not be; jsonargparse takes both."""
    if not isinstance(values, Mapping):
        raise RefineError(f"{source}: expected a mapping, got {values!r:.40}; correct the field")
    hints = typing.get_type_hints(cls)
    for name, value in values.items():
        kinds = typing.get_args(hints.get(name)) or (hints.get(name),)
        if value is None and name in hints and type(None) not in kinds:
            raise RefineError(f"{source}.{name}: expected a value, got null; correct the field")
        part = next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)
        if part is not None and value is not None:
            _check_structure(typing.cast(type, part), value, f"{source}.{name}")


def to_mapping(config: Any) -> dict[str, Any]:
    """Plain JSON values of a config; `from_mapping` reads them back equal."""
    return _plain(dataclasses.asdict(config))


def one_line(error: Exception) -> str:
    """jsonargparse's message in one line, with the field in front."""
    message = " ".join(str(error).split())
    message = re.sub(r"Group '(\S+)' does not accept option '(\S+)'", r"\1.\2: unknown field", message)
    message = re.sub(r"Option '(\S+)' is not accepted", r"\1: unknown field", message)
    return re.sub(r'Parser key "(\S+)": Expected', r"\1: expected", message)


def _plain(value: Any) -> Any:
    """Tuples become lists, as JSON and YAML have them."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
