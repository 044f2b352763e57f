"""Imports point one way: see ALLOWED, from the commands down to the tensor functions."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "refine"
GROUND = {"errors", "files", "compiled", "config", "runtime", "tensors", "structures", "ops"}
NETWORK = GROUND | {"modeling", "fusion", "formats"}
MIDDLE = NETWORK | {"drawing", "evaluation", "data", "checkpoint"}
ALLOWED = {
    "errors": set(),
    "compiled": set(),
    "files": {"errors"},
    "config": {"errors"},
    "runtime": {"errors"},
    "tensors": {"errors", "files"},
    "ops": set(),
    "structures": {"errors"},
    "modeling": GROUND,
    "fusion": GROUND,
    "formats": GROUND,
    "drawing": GROUND | {"fusion", "formats"},
    "evaluation": GROUND | {"formats"},
    "data": GROUND | {"formats"},
    "checkpoint": GROUND | {"modeling", "fusion"},
    "inference": MIDDLE,
    "training": MIDDLE | {"inference"},
    "experiments": MIDDLE | {"inference", "training"},
    "serve": MIDDLE | {"inference", "training", "experiments"},
}


def _imported_parts(path: Path) -> set[str]:
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names = [node.module] if node.module != "refine" else [f"refine.{a.name}" for a in node.names]
        parts |= {name.split(".")[1] for name in names if name.startswith("refine.")}
    return parts


@pytest.mark.parametrize("part", sorted(ALLOWED))
def test_imports_point_backwards(part: str) -> None:
    single = PACKAGE / f"{part}.py"
    files = [single] if single.exists() else sorted((PACKAGE / part).rglob("*.py"))
    assert files
    for path in files:
        wrong = _imported_parts(path) - ALLOWED[part] - {part}
        assert not wrong, f"{path.relative_to(PACKAGE)} imports {sorted(wrong)}"


def test_every_part_has_its_place() -> None:
    parts = {path.stem for path in PACKAGE.glob("*.py")} | {
        path.parent.name for path in PACKAGE.glob("*/__init__.py")
    }
    assert parts - {"__init__", "cli"} == set(ALLOWED)
