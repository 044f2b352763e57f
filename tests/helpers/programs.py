"""Import of the programs in benchmarks/, which are not part of the package."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@contextmanager
def program(name: str) -> Iterator[ModuleType]:
    """Import benchmarks/NAME.py, and forget it and what it imports from its folder at the end of the context."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield import_module(name)
    finally:
        sys.path.remove(str(FOLDER))
        for path in FOLDER.glob("*.py"):
            sys.modules.pop(path.stem, None)
