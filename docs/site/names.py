"""Where the names of the code are defined, so that pages can state files and lines that never go stale."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAME = re.compile(r"`(refine(?:\.\w+)+)`")
"""A dotted name of the package in a page, such as `refine.ops.penalty.penalized`."""


def locate(name: str) -> tuple[str, int]:
    """Return the file, relative to the repository, and the line that define a dotted name.

    Args:
        name: module, function, class, method or variable, such as "refine.ops.penalty.penalized".

    Raises:
        LookupError: the package does not define the name.
    """
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        base = ROOT.joinpath(*parts[:count])
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if path.is_file():
                line = _line(path, parts[count:])
                if line is None:
                    raise LookupError(f"{name}: {path.relative_to(ROOT)} does not define {'.'.join(parts[count:])}")
                return str(path.relative_to(ROOT)), line
    raise LookupError(f"{name}: no such module")


def with_lines(text: str) -> str:
    """Add file and line to each dotted name of the package in a Markdown text."""

    def located(match: re.Match[str]) -> str:
        path, line = locate(match[1])
        return f"`{match[1].rsplit('.', 1)[-1]}` ({path.removeprefix('refine/')}:{line})"

    return NAME.sub(located, text)


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _line(path: Path, parts: list[str]) -> int | None:
    """Return the line of a nested name in a file: 1 for the module itself, None if it is not defined."""
    body, line = _tree(path).body, 1
    for n, part in enumerate(parts):
        found = next((node for node in body if part in _defined(node)), None)
        if found is None and n == 0 and path.name == "__init__.py":
            found = next((node for node in ast.walk(_tree(path)) if part in _imported(node)), None)
        if found is None:
            return None
        line, body = found.lineno, getattr(found, "body", [])
    return line


def _defined(node: ast.AST) -> list[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.AsyncFunctionDef(name=name):
            return [name]
        case ast.Assign(targets=targets):
            return [target.id for target in targets if isinstance(target, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
    return []


def _imported(node: ast.AST) -> list[str]:
    return [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []
