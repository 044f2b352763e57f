"""Reference pages that are generated from the code: commands, config fields and the public API."""

from __future__ import annotations

import dataclasses
import io
import os
import re
import tomllib
import typing
from collections.abc import Iterator
from contextlib import redirect_stdout
from typing import Any, Literal, Union, get_args, get_origin
from unittest import mock

import docstring_parser
from names import ROOT

import refine
from refine.cli.main import COMMANDS, main
from refine.fusion.config import FusionConfig
from refine.training.config import RunConfig


def commands_page() -> str:
    """Return a page with the `--help` of every command."""
    lines = ["# Commands", "", "What `--help` prints, for every command.", "", "```text", _help(), "```"]
    for name, text in COMMANDS.items():
        lines += ["", f"## refine {name}", "", f"{text[0].upper()}{text[1:]}.", "", "```text", _help(name), "```"]
    return "\n".join([*lines, ""])


def _help(*command: str) -> str:
    output = io.StringIO()
    with mock.patch.dict(os.environ, COLUMNS="110", NO_COLOR="1"), redirect_stdout(output):
        try:
            main([*command, "--help"])
        except SystemExit as end:
            if end.code:
                raise
    return output.getvalue().rstrip()


def configs_page() -> str:
    """Return a page with every field of a training config: type, default, range and meaning."""
    lines = [
        "# Config fields",
        "",
        "The fields of the YAML that `refine train --config` reads, in the order of `--print_config`. On the "
        "command line a field is an option: `--optim.lr 0.001`. An unknown field, a wrong type and a value "
        "out of range are errors that name the field. Marks in brackets name the source of a default: [P] the "
        "paper, [BCC] BCC-Net, [d2] detectron2, [K] Panoptic-FPN, [O] OCFusion, [IMP] Instance Mask "
        "Projection, [C] our choice.",
    ]
    for where, cls in _sections(RunConfig, ""):
        title = f"`{where}` {{ #{where} }}" if where else "Top level"
        lines += ["", f"## {title}", "", *_introduction(cls, where), "", *_table(cls, where)]
    return "\n".join([*lines, ""])


def extras_table() -> str:
    """Return a table of the extras in pyproject.toml; the comment above it, or its neighbours, says its use."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text.split("[project.optional-dependencies]\n", 1)[1].split("\n\n", 1)[0]
    purpose, rows = "", ["| extra | for | packages |", "|-|-|-|"]
    packages = tomllib.loads(text)["project"]["optional-dependencies"]
    for line in section.splitlines():
        if line.startswith("#"):
            purpose = line.removeprefix("# ")
        elif match := re.match(r"(\w+) = \[", line):
            named = ", ".join(f"`{package}`" for package in packages[match[1]])
            rows.append(f"| `{match[1]}` | {purpose} | {named} |")
    return "\n".join(rows)


def config_paths() -> set[str]:
    """Return the dotted names of all fields of a training config, such as "optim.lr"."""
    return {
        f"{where}.{field.name}".lstrip(".")
        for where, cls in _sections(RunConfig, "")
        for field in dataclasses.fields(cls)
    }


def api_pages() -> dict[str, str]:
    """Return one page per public name of the package: file name and Markdown."""
    pages = {}
    for name in refine.__all__:
        home = refine._HOMES[name]
        target = home if name == "adapters" else f"{home}.{name}"
        options = f"    options:\n      heading: refine.{name}\n      heading_level: 1\n      toc_label: {name}"
        pages[f"{name}.md"] = f"---\ntitle: refine.{name}\n---\n\n::: {target}\n{options}\n"
    return pages


def _introduction(cls: type, where: str) -> list[str]:
    text = docstring_parser.parse(cls.__doc__ or "")
    parts = [text.short_description or "", text.long_description or ""]
    if cls is FusionConfig and where:
        parts.append("The commands that fuse take these thresholds as options too; see [fusion](../fusion.md).")
    return [_plain(part) for part in parts if part]


def _sections(cls: type, where: str) -> Iterator[tuple[str, type]]:
    """Yield every config dataclass with the path of its field, outermost first."""
    yield where, cls
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        inner = next((part for part in (hints[field.name], *get_args(hints[field.name])) if _is_config(part)), None)
        if inner is not None:
            yield from _sections(inner, f"{where}.{field.name}" if where else field.name)


def _is_config(hint: Any) -> bool:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def _table(cls: type, where: str) -> list[str]:
    hints = typing.get_type_hints(cls)
    meanings = {
        name.strip(): param.description or ""
        for param in docstring_parser.parse(cls.__doc__ or "").params
        for name in param.arg_name.split(",")
    }
    rows = ["| field | type | default | range | meaning |", "|-|-|-|-|-|"]
    for field in dataclasses.fields(cls):
        if field.name not in meanings:
            raise LookupError(f"{cls.__name__}.{field.name}: not described in the docstring")
        bounds = field.metadata.get("bounds")
        cells = [
            f"`{field.name}`",
            _type(hints[field.name]),
            _default(field, f"{where}.{field.name}".lstrip(".")),
            str(bounds).removeprefix("a number ") if bounds else "",
            _plain(meanings[field.name]),
        ]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return rows


def _type(hint: Any) -> str:
    """Return a type in words: "float or null", "list of int"."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is type(None):
        return "null"
    if _is_config(hint):
        return "section"
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin is list:
        return f"list of {_type(inner[0])}"
    if origin is tuple:
        return f"{len(inner)} × {_type(inner[0])}"
    if origin is Union or type(hint).__name__ == "UnionType":
        return " or ".join(map(_type, inner))
    return {str: "text", bool: "true, false"}.get(hint, hint.__name__)


def _default(field: dataclasses.Field[Any], path: str) -> str:
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if dataclasses.is_dataclass(value):
        return f"[see below](#{path})"
    if value is None or isinstance(value, bool):
        return f"`{'null' if value is None else str(value).lower()}`"
    if isinstance(value, tuple):
        value = list(value)
    return f"`{value}`" if value != "" else "empty"


def _plain(text: str) -> str:
    """Return a docstring's text on one line, with characters escaped that Markdown would take for markup."""
    return re.sub(r"([\[\]<*])|(?<!\w)_|_(?!\w)", lambda m: "\\" + m[0], " ".join(text.split()))
