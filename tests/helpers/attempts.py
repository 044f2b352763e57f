"""Running commands on input that may be broken: the right result or one line, nothing half-written."""

import json
import resource
import shutil
import traceback
from pathlib import Path

import pytest
from PIL import Image

from refine.cli.main import main

MEMORY = 1 << 30
"""Bytes by which the largest memory of this process may grow with one input."""

LINE = 1100
"""Longest line of a message."""


class Attempts:
    """Runs commands into the folder OUT and collects what ended otherwise than it may.

    Args:
        out: the folder; emptied before each command.
        capsys: pytest's.
    """

    def __init__(self, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.out, self.capsys = out, capsys
        self.memory = _memory()
        self.problems: list[str] = []

    def __call__(self, *words: object) -> int:
        shutil.rmtree(self.out, ignore_errors=True)
        self.capsys.readouterr()
        try:
            try:
                code = main([str(word) for word in words])
            except SystemExit as end:
                code = end.code
            error = self.capsys.readouterr().err
            assert code in (0, 1, 2), f"exit code {code}: {error}"
            for line in error.splitlines():
                known = line.startswith(("refine: note: ", "refine: error: "))
                assert known or code == 2 or words[0] == "train", error  # training logs there
                assert len(line) <= LINE, line
            assert code != 1 or error.splitlines()[-1].startswith("refine: error: "), error
            for path in self.out.rglob("*"):
                whole(path)
            grown = _memory() - self.memory
            self.memory = max(self.memory, _memory())
            assert grown < MEMORY, f"{grown >> 20} MiB more"
        except Exception:
            self.problems.append(traceback.format_exc(limit=-4))
            return -1
        return code


def _memory() -> int:
    """Bytes that this process has held at most."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def whole(path: Path) -> None:
    """A file that was written can be read."""
    assert not path.name.startswith(".") or path.name == ".lock", f"{path}: left behind"
    if path.suffix == ".json":
        json.loads(path.read_text())
    if path.suffix in (".png", ".jpg"):
        with Image.open(path) as image:
            image.load()
