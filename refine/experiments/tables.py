"""The paper's tables as rows of models and rules of fusion, read from small YAML files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from refine.config import from_mapping
from refine.errors import RefineError
from refine.fusion import Method

EXPERIMENTS = Path(__file__).parent

SECOND_STAGE_EPOCHS = 3
"""Of the occlusion head on the frozen network [BCC]."""


@dataclass
class Row:
    """One line of a table.

    Attributes:
        name: unique in the table.
        config: name of a config in the folder that the table is made for; None takes the table's one config.
        train: dotted fields of the config that this row changes; None trains nothing.
        of: row whose model it starts from (the table's `start` if None), or, where it trains nothing, whose
            model it uses.
        fresh: it starts from what the config begins with, not from the table's `start`.
        steps: share of the base's updates.
        epochs: passes over the training data in place of `steps`; the rate falls after each ("steps").
        rate: share of the base's learning rate.
        method: rule of fusion.
        fusion: fields of the fusion's thresholds that it changes.
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
        """`train` as words of a command line; words in a Literal field stay without quotes."""
        return [
            f"--{name}={value if isinstance(value, str) else json.dumps(value)}"
            for name, value in (self.train or {}).items()
        ]


@dataclass
class Table:
    """One table of the paper.

    Attributes:
        title: what it shows.
        metrics: columns, of `Evaluation.metrics`.
        rows: its lines.
        start: model that rows begin with, trained but not shown; if None, what the config begins with.
        reference: row that the others are compared with; the first one if None.
        fusion: fields of the fusion's thresholds that all rows change, whatever the config says.
    """

    title: str
    metrics: list[str]
    rows: list[Row]
    start: Row | None = None
    reference: str | None = None
    fusion: dict[str, Any] = field(default_factory=dict)


def load_table(name: str | Path) -> Table:
    """Read `refine/experiments/NAME.yaml`, or a file of one's own.

    Raises:
        RefineError: no such table, or a broken one.
    """
    path = next((p for p in (EXPERIMENTS / f"{name}.yaml", Path(name)) if p.is_file()), None)
    if path is None:
        known = ", ".join(sorted(p.stem for p in EXPERIMENTS.glob("*.yaml")))
        raise RefineError(f"{name}: no such table; give a file, or one of {known}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise RefineError(f"{path}: is not YAML ({' '.join(str(error).split())}); correct it") from error
    if not isinstance(content, dict):
        raise RefineError(f"{path}: is no mapping; give title, metrics and rows")
    table = from_mapping(Table, content, str(path))
    if table.reference not in (None, *(row.name for row in table.rows)):
        raise RefineError(f"{path}: reference: no row {table.reference!r}; name one of the rows")
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
    """The table trained as the paper trains: no common start, each row for all updates of its config.

    Second stages (rows that train some parameters only) take three epochs at the config's whole rate.
    """
    rows = []
    for row in table.rows:
        second = any(name.startswith("optim.train_only") for name in row.train or {})
        rows.append(replace(row, steps=1.0, rate=1.0, epochs=SECOND_STAGE_EPOCHS if second else None))
    return replace(table, start=None, rows=rows)


def only(table: Table, names: Sequence[str]) -> Table:
    """The table with these rows, and those whose models they need, in its own order.

    If the row that others are compared with is not among them, the first one takes its place.

    Raises:
        RefineError: a name that no row has.
    """
    rows = {row.name: row for row in table.rows}
    wanted: set[str] = set()
    for name in names:
        if name not in rows:
            raise RefineError(f"rows: no row {name!r}; name some of {', '.join(map(repr, rows))}")
        needed: str | None = name
        while needed is not None:
            wanted.add(needed)
            needed = rows[needed].of
    kept = [row for row in table.rows if row.name in wanted]
    return replace(table, rows=kept, reference=table.reference if table.reference in wanted else None)
