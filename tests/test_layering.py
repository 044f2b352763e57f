"""Imports point one way: from the commands down to the tensor functions, as listed in ALLOWED."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "refine"
GROUND = {
    "errors",
    "bounds",
    "cores",
    "files",
    "folders",
    "storage",
    "compiled",
    "config",
    "runtime",
    "tensors",
    "structures",
    "ops",
}
NETWORK = GROUND | {"modeling", "fusion", "formats"}
MIDDLE = NETWORK | {"drawing", "savers", "evaluation", "data", "checkpoint", "networks"}
ALLOWED = {
    "errors": set(),
    "bounds": {"errors"},
    "cores": set(),
    "compiled": {"errors", "files"},
    "files": {"errors"},
    "folders": {"errors", "files"},
    "storage": {"errors", "files"},
    "config": {"errors", "bounds", "files"},
    "runtime": {"errors", "cores"},
    "tensors": {"errors", "files"},
    "ops": set(),
    "structures": {"errors", "ops"},
    "modeling": GROUND,
    "fusion": GROUND,
    "formats": GROUND,
    "drawing": GROUND | {"fusion", "formats"},
    "savers": GROUND | {"formats", "drawing"},
    "evaluation": GROUND | {"formats"},
    "data": GROUND | {"formats"},
    "checkpoint": GROUND | {"modeling", "fusion"},
    "networks": NETWORK | {"data", "checkpoint"},
    "export": MIDDLE | {"inference"},
    "inference": MIDDLE,
    "training": MIDDLE | {"inference"},
    "experiments": MIDDLE | {"inference", "training"},
    "serve": MIDDLE | {"inference", "training", "experiments"},
}


CONVENIENCES = {("structures/panoptic.py", layer) for layer in ("formats", "drawing", "savers")}
"""Modules that may import a higher layer inside methods: `PanopticResult` saves and draws itself."""


def _imported_parts(node: ast.AST, path: Path) -> set[str]:
    parts = set()
    for child in ast.walk(node):
        names = []
        if isinstance(child, ast.Import):
            names = [alias.name for alias in child.names]
        elif isinstance(child, ast.ImportFrom) and child.module:
            assert child.level == 0, f"{path}: relative import"
            names = [child.module] if child.module != "refine" else [f"refine.{a.name}" for a in child.names]
        parts |= {name.split(".")[1] for name in names if name.startswith("refine.")}
    return parts - {"__version__"}


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


@pytest.mark.parametrize("part", sorted(ALLOWED))
def test_imports_point_backwards(part: str) -> None:
    single = PACKAGE / f"{part}.py"
    files = [single] if single.exists() else sorted((PACKAGE / part).rglob("*.py"))
    assert files
    for path in files:
        tree, name = ast.parse(path.read_text()), str(path.relative_to(PACKAGE))
        wrong = _imported_parts(tree, path) - ALLOWED[part] - {part}
        at_import = [node for node in tree.body if not isinstance(node, ast.ClassDef) and not _is_for_types(node)]
        early = set().union(*(_imported_parts(node, path) for node in at_import))
        wrong -= {other for other in wrong - early if (name, other) in CONVENIENCES}
        assert not wrong, f"{name} imports {sorted(wrong)}"


def test_evaluation_does_not_import_drawing() -> None:
    for name in ("evaluate", "measures", "predictor"):
        path = PACKAGE / "inference" / f"{name}.py"
        assert "drawing" not in _imported_parts(ast.parse(path.read_text()), path)


def test_every_package_is_listed() -> None:
    parts = {path.stem for path in PACKAGE.glob("*.py")} | {
        path.parent.name for path in PACKAGE.glob("*/__init__.py")
    }
    assert parts - {"__init__", "__main__", "cli"} == set(ALLOWED)
