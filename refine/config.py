"""Conversion of config dataclasses from and to plain JSON or YAML values, with strict checks."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from refine.bounds import check_bounds
from refine.errors import RefineError, shown
from refine.files import read_bytes

T = TypeVar("T")
MAX_YAML, MAX_DEPTH, MAX_VALUES = 2**20, 50, 100_000
"""Maximum number of characters, nesting levels and values of a YAML file; the longest config has 300 values."""
MAX_DIGITS = 300
"""Maximum number of digits of a number: a float holds no more."""


def from_mapping(cls: type[T], values: Mapping[str, Any], source: str) -> T:
    """Build a dataclass from plain JSON or YAML values, with strict checks.

    Args:
        cls: config dataclass.
        values: field values by name; missing fields get their defaults.
        source: file and field that hold the values, for messages.

    Raises:
        RefineError: an unknown field, a wrong type or a value out of its range; names the field.
    """
    check_structure(cls, values, source)
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


def check_structure(cls: type, values: Any, source: str) -> None:
    """Raise RefineError if a nested config is no mapping or a required field is null; jsonargparse accepts both.

    Args:
        cls: config dataclass.
        values: field values by name.
        source: file and field that hold the values, for messages.
    """
    if not isinstance(values, Mapping):
        raise RefineError(f"{source}: expected a mapping, got {shown(values)}; correct the field")
    hints = typing.get_type_hints(cls)
    for name, value in values.items():
        kinds = typing.get_args(hints.get(name)) or (hints.get(name),)
        if value is None and name in hints and type(None) not in kinds:
            raise RefineError(f"{source}.{name}: expected a value, got null; correct the field")
        part = next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)
        if part is not None and value is not None:
            listed = typing.get_origin(hints[name]) is list and isinstance(value, list)
            for n, one in enumerate(value if listed else [value]):
                where = f"{source}.{name}[{n}]" if listed else f"{source}.{name}"
                check_structure(typing.cast(type, part), one, where)


def to_mapping(config: Any) -> dict[str, Any]:
    """Return a config as plain JSON values, which `from_mapping` converts back to an equal config."""
    return _plain(dataclasses.asdict(config))


def read_yaml(path: str | Path) -> Any:
    """Read a YAML file that has at most the size of a config after its aliases are expanded.

    Raises:
        RefineError: the file cannot be read, is not YAML in UTF-8, is too long, nested too deeply, has too many
            values, or one that no field takes.
    """
    data = read_bytes(path)
    try:
        text = data.decode()
        _check_yaml(text)
        return yaml.safe_load(text)
    except RefineError as error:
        raise RefineError(f"{path}: {error}") from error
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise RefineError(f"{path}: is not valid YAML ({one_line(error)}); correct it") from error


def _check_yaml(text: str) -> None:
    """Raise RefineError unless YAML text has at most the size of a config after its aliases are expanded."""
    if len(text) > MAX_YAML:
        raise RefineError(f"has {len(text)} characters; expected at most {MAX_YAML}")
    sizes: dict[str, int] = {}  # number of values under each anchor
    open_: list[tuple[str | None, int]] = [(None, 0)]  # anchor and number of values so far of each open collection
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            open_.append((event.anchor, 1))
            if len(open_) > MAX_DEPTH:
                raise RefineError(f"is nested {MAX_DEPTH} levels deep or more; flatten it")
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_.pop()
        elif isinstance(event, yaml.ScalarEvent):
            _check_scalar(event)
            anchor, size = event.anchor, 1
        elif isinstance(event, yaml.AliasEvent):
            anchor, size = None, sizes.get(event.anchor, MAX_VALUES + 1)  # unknown: it contains itself
        else:
            continue
        if anchor is not None:
            sizes[anchor] = size
        open_[-1] = (open_[-1][0], open_[-1][1] + size)
        if open_[-1][1] > MAX_VALUES:
            raise RefineError(f"has over {MAX_VALUES} values after alias expansion; remove aliases")


def _check_scalar(event: yaml.ScalarEvent) -> None:
    line = event.start_mark.line + 1
    if "\0" in event.value:
        raise RefineError(f"line {line}: {shown(event.value)} holds a NUL character; remove it")
    if len(event.value) > MAX_DIGITS and event.value.lstrip("+-").replace("_", "").isdigit():
        raise RefineError(f"line {line}: a number of {len(event.value)} digits is too large; give a smaller one")


def one_line(error: Exception) -> str:
    """Return jsonargparse's message on one line, with the field in front."""
    message = " ".join(str(error)[:2000].split())
    message = re.sub(r"Group '(\S+)' does not accept option '(\S+)'", r"\1.\2: unknown field", message)
    message = re.sub(r"Option '(\S+)' is not accepted", r"\1: unknown field", message)
    message = re.sub(r'Parser key "(\S+)": Expected', r"\1: expected", message)
    return message if len(message) <= 400 else f"{message[:399]}…"


def _plain(value: Any) -> Any:
    """Convert tuples to lists, as in JSON and YAML."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
