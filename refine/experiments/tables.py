"""Tables of the paper as rows of models and fusion rules, read from small YAML files."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from refine.config import from_mapping, read_yaml
from refine.errors import RefineError, did_you_mean
from refine.fusion import Method

EXPERIMENTS = Path(__file__).parent

SECOND_STAGE_EPOCHS = 3
"""Epochs for which the occlusion head is trained on the frozen network [BCC]."""


@dataclass
class Row:
    """One row of a table.

    Attributes:
        name: unique name in the table.
        config: name of a config in the folder given for the table; None stands for the one config given.
        train: overrides of config fields by dotted name; None trains nothing.
        of: row whose model this row starts from (None stands for the table's `start`) or, without training, whose
            model it uses.
        fresh: whether to start from the config's initial weights instead of the table's `start`.
        steps: number of updates as a fraction of the config's.
        epochs: number of epochs instead of `steps`; the learning rate falls after each ("steps").
        rate: learning rate as a fraction of the config's.
        method: fusion rule.
        fusion: overrides of fusion thresholds.
    """

    name: str
    config: str | None = None
    train: dict[str, Any] | None = None
    of: str | None = None
    fresh: bool = False
    steps: float = 1.0
    epochs: int | None = None
    rate: float = 1.0
    method: Method = "heuristic"
    fusion: dict[str, Any] = field(default_factory=dict)

    def overrides(self) -> list[str]:
        """Return `train` as command-line arguments; strings are not quoted."""
        return [
            f"--{name}={value if isinstance(value, str) else json.dumps(value)}"
            for name, value in (self.train or {}).items()
        ]


@dataclass
class Table:
    """One table of the paper.

    Attributes:
        title: title of the table.
        metrics: columns, named as in `Evaluation.metrics`.
        rows: rows of the table.
        start: model that rows start from, trained but not shown; None stands for the config's initial weights.
        reference: row that the others are compared with; None stands for the first one.
        fusion: overrides of fusion thresholds for all rows.
    """

    title: str
    metrics: list[str]
    rows: list[Row]
    start: Row | None = None
    reference: str | None = None
    fusion: dict[str, Any] = field(default_factory=dict)


def load_table(name: str | Path) -> Table:
    """Read `refine/experiments/NAME.yaml`, or another YAML file.

    Raises:
        RefineError: the table does not exist or is invalid.
    """
    path = next((p for p in (EXPERIMENTS / f"{name}.yaml", Path(name)) if p.is_file()), None)
    if path is None:
        known = sorted(p.stem for p in EXPERIMENTS.glob("*.yaml"))
        similar = did_you_mean(str(name), known)
        raise RefineError(f"{name}: no such table{similar}; give a file, or one of {', '.join(known)}")
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise RefineError(f"{path}: is not a mapping; give title, metrics and rows")
    table = from_mapping(Table, content, str(path))
    if table.reference is not None:
        _check_row(table.reference, [row.name for row in table.rows], f"{path}: reference")
    for n, row in enumerate(table.rows):
        earlier = {r.name for r in table.rows[:n]}
        if row.name in earlier:
            raise RefineError(f"{path}: rows: {row.name!r} occurs twice; rename one")
        if row.of is not None and row.of not in earlier:
            raise RefineError(f"{path}: row {row.name!r}: of: no row {row.of!r} comes before it")
        if row.train is None and row.of is None:
            raise RefineError(f"{path}: row {row.name!r}: give `train` or `of`")
        row.fusion = table.fusion | row.fusion
    return table


def paper_schedule(table: Table) -> Table:
    """Return the table with the paper's schedule: no shared start, and all updates of the config for each row.

    Second stages (rows that train some parameters only) take three epochs at the config's learning rate.
    """
    rows = []
    for row in table.rows:
        second = any(name.startswith("optim.train_only") for name in row.train or {})
        rows.append(replace(row, steps=1.0, rate=1.0, epochs=SECOND_STAGE_EPOCHS if second else None))
    return replace(table, start=None, rows=rows)


def only(table: Table, names: Sequence[str]) -> Table:
    """Return the table with these rows and the rows whose models they need, in the order of the table.

    If the reference row is not among them, the first row becomes the reference.

    Raises:
        RefineError: no row has one of the names.
    """
    rows = {row.name: row for row in table.rows}
    selected: set[str] = set()
    for name in names:
        _check_row(name, rows, "rows")
        needed: str | None = name
        while needed is not None:
            selected.add(needed)
            needed = rows[needed].of
    kept = [row for row in table.rows if row.name in selected]
    return replace(table, rows=kept, reference=table.reference if table.reference in selected else None)


def compared_with(table: Table, name: str) -> Table:
    """Return the table with this row as the reference.

    Raises:
        RefineError: no row has this name.
    """
    _check_row(name, [row.name for row in table.rows], "reference")
    return replace(table, reference=name)


def _check_row(name: str, names: Collection[str], option: str) -> None:
    """Raise RefineError if no row has this name."""
    if name not in names:
        similar = did_you_mean(name, names)
        raise RefineError(f"{option}: no row {name!r}{similar}; the rows are {', '.join(map(repr, names))}")
