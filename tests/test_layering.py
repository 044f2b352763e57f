"""Imports point one way: cli → serve → engine → {modeling, fusion, evaluation, data} → {ops, structures}."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "refine"
GROUND = {"structures", "errors", "files"}
ALLOWED = {
    "errors": set(),
    "files": {"errors"},
    "structures": {"errors"},
    "ops": set(),
    "data": GROUND | {"ops"},
    "modeling": GROUND | {"ops"},
    "fusion": GROUND | {"ops"},
    "evaluation": GROUND | {"ops"},
    "engine": GROUND | {"ops", "data", "modeling", "fusion", "evaluation"},
    "serve": GROUND | {"data", "fusion", "evaluation", "engine"},
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
