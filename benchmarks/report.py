"""Report of many figures in Markdown, some of which may fail; see gpu.py."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from refine.errors import RefineError
from refine.experiments.machine import name_machine

PAPER_FPS = "the paper reports 5.5 frames per second for REFINE R101-DCN and 7.3 for its cascade baseline"


class Report:
    """Rows of the tables and what failed.

    Attributes:
        parts: rows by part of the measurement.
        failed: one line per figure that could not be measured.
    """

    def __init__(self) -> None:
        self.parts: dict[str, list[dict[str, Any]]] = {}
        self.failed: list[str] = []

    def add(self, part: str, **row: Any) -> None:
        """Add a row, and print it, so that a run that is cut short was not in vain."""
        self.parts.setdefault(part, []).append(row)
        print(part, *(f"{key} {_cell(value)}" for key, value in row.items()), sep=" | ", flush=True)

    @contextlib.contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Note an error instead of raising it, and free the memory of the device."""
        try:
            yield
        except (RuntimeError, MemoryError, RefineError, ImportError, OSError, ValueError) as error:
            self.failed.append(f"{what}: {type(error).__name__}: {str(error).strip().splitlines()[0][:200]}")
            print(self.failed[-1], flush=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def markdown(self, machine: dict[str, Any], command: str) -> str:
        """Return the whole report."""
        lines = [
            f"{name_machine(machine)}, torch {machine['torch']}, commit {machine['commit']}, {machine['date']}.",
            f"For comparison, {PAPER_FPS}.",
            "",
            f"    {command}",
        ]
        for part, rows in self.parts.items():
            keys = list(rows[0])
            lines += ["", f"## {part}", "", "| " + " | ".join(keys) + " |", "|-" * len(keys) + "|"]
            lines += ["| " + " | ".join(_cell(row[key]) for key in keys) + " |" for row in rows]
        if self.failed:
            lines += ["", "## Not measured", "", *(f"- {line}" for line in self.failed)]
        return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
