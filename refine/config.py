"""Conversion of config dataclasses from and to plain JSON or YAML values, with strict checks."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from refine.bounds import check_bounds
from refine.errors import RefineError, did_you_mean, shown
from refine.files import read_bytes

T = TypeVar("T")
MAX_YAML, MAX_DEPTH, MAX_VALUES = 2**20, 50, 100_000
"""Maximum number of characters, nesting levels and values of a YAML file; the longest config has 300 values."""
MAX_DIGITS = 300
"""Maximum number of digits of a number: a float holds no more."""

_UNKNOWN = (
    r"Group '(\S+)' does not accept option '(\S+)'",
    r"Option '(\S+)' is not accepted",
    r"unrecognized arguments: --([^\s=]+)",
)
_KEY = re.compile(r"""(?:Unable to load config '.*' - )?Parser key "(\S+)": (.*)""")
_PART = re.compile(r"Does not validate .*? Errors: - Problem with given class_path '\S+': (.*)")
_TAIL = re.compile(r" - Expected a <class 'NoneType'> Given value type: .*")
_UNION = re.compile(
    r"Does not validate against any of the Union subtypes Subtypes: \[(.*?)\] Errors: .*? Given value: "
    rf"(.*?)(?:{_TAIL.pattern})?$"
)
"""Messages of jsonargparse on one line: the parts that `field_problem` rewords."""
_KINDS = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "str": "a string",
    "list": "a list",
    "mapping": "a mapping",
    "tuple[float, float]": "two numbers",
}


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
    with field_errors(cls, source, "value."):
        config = typing.cast(T, parser.instantiate(parser.parse_object({"value": dict(values)})).value)
    try:
        check_bounds(config)
    except RefineError as error:
        raise RefineError(f"{source}: {error}") from error
    return config


def check_structure(cls: type, values: Any, source: str, parent: str = "") -> None:
    """Check what jsonargparse accepts or reports badly.

    Args:
        cls: config dataclass.
        values: field values by name.
        source: file and field that hold the values, for messages.
        parent: dotted name of the field that holds the values; "" stands for the whole config.

    Raises:
        RefineError: a field is unknown, a nested config is no mapping, or a required field is null.
    """
    if not isinstance(values, Mapping):
        where = f"{source}: {parent}" if parent else source
        raise RefineError(f"{where}: expected a mapping, got {shown(values)}; correct the field")
    hints = typing.get_type_hints(cls)
    for name, value in values.items():
        field = f"{parent}.{name}" if parent else str(name)
        if name not in hints:
            similar = did_you_mean(str(name), field_names(cls))
            raise RefineError(f"{source}: {field:.100}: unknown field{similar}; correct the name")
        kinds = typing.get_args(hints[name]) or (hints[name],)
        if value is None and type(None) not in kinds:
            raise RefineError(f"{source}: {field}: expected a value, got null; correct the field")
        part = next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)
        if part is not None and value is not None:
            listed = typing.get_origin(hints[name]) is list and isinstance(value, list)
            for n, one in enumerate(value if listed else [value]):
                check_structure(typing.cast(type, part), one, source, f"{field}[{n}]" if listed else field)


def field_names(cls: type) -> Iterator[str]:
    """Yield the dotted names of all fields of a config dataclass, such as "optim" and "optim.lr"."""
    for name, hint in typing.get_type_hints(cls).items():
        yield name
        for kind in typing.get_args(hint) or (hint,):
            if dataclasses.is_dataclass(kind):
                yield from (f"{name}.{below}" for below in field_names(typing.cast(type, kind)))


@contextmanager
def field_errors(cls: type, source: str, prefix: str = "") -> Iterator[None]:
    """Convert the errors of jsonargparse in a block to RefineErrors that name the field.

    Args:
        cls: config dataclass that is parsed.
        source: file that holds the values, for messages.
        prefix: what the parser's names of the fields start with.
    """
    try:
        yield
    except (ArgumentError, OverflowError, RecursionError, TypeError, ValueError) as error:
        message = field_problem(one_line(error).replace(prefix, ""), field_names(cls))
        raise RefineError(f"{source}: {message}; correct the field") from error


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
    """Return the message of an exception on one line."""
    return " ".join(str(error)[:2000].split())


def field_problem(message: str, names: Iterable[str]) -> str:
    """Reword a message of jsonargparse: field, problem, and the most similar name.

    Args:
        message: message on one line.
        names: dotted names of all fields.
    """
    field = ""
    while found := _KEY.match(message):
        key, message = found.groups()
        field = f"{key}." if f"{key}.".startswith(field) else f"{field}{key}."
        if part := _PART.match(message):
            message = part[1] if "Subtypes:" in part[1] else _TAIL.sub("", part[1])
    for pattern in _UNKNOWN:
        if found := re.search(pattern, message):
            name = field + ".".join(found.groups())
            others = [each for each in names if not name.startswith(f"{each}.")]
            return f"{name:.100}: unknown field{did_you_mean(name, others)}"
    message = re.sub(r'^Unable to load config "(.*)"$', r"Expected a mapping. Got value: \1", message)
    if found := _UNION.match(message):
        message = f"Expected a {found[1].replace(', <', ' or <')}. Got value: {found[2]}"
    message = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", message).replace("NoneType", "null")
    if found := re.match(r"Expected an? (.*?)\. Got value: (.*)", message):
        kind, value = found.groups()
        if choices := re.match(r"typing\.Literal\[(.*)\]", kind):
            kind = f"one of {choices[1]}"
            value += did_you_mean(value, re.findall(r"'(.*?)'", choices[1]))
        kind = " or ".join(_KINDS.get(word, word) for word in kind.split(" or "))
        message = f"expected {kind}, got {value}"
    message = f"{field[:-1]}: {message}" if field else message
    return message if len(message) <= 400 else f"{message[:399]}…"


def _plain(value: Any) -> Any:
    """Convert tuples to lists, as in JSON and YAML."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
