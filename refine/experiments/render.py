"""Results of a table as Markdown, JSON, a bar chart with error bars, and learning curves."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from refine.drawing.curves import Log, draw_curves, to_png
from refine.errors import printable
from refine.evaluation.interval import paired_interval, read_counts
from refine.experiments.machine import name_machine
from refine.experiments.tables import Table
from refine.files import write_bytes, write_json, write_text
from refine.formats.result_files import remove
from refine.training.logs import read_log

Results = Mapping[str, Sequence[Mapping[str, Any]]]
"""By row, one result per seed."""


def write_table(table: Table, results: Results, path: Path, command: str, notes: Sequence[str] = ()) -> str:
    """Write PATH.md, PATH.json, PATH.png and, for models that were trained for the table, PATH_curves.png.

    Args:
        table: title, columns and rows.
        results: results of `run_table`; seeds may be missing.
        path: output path without a suffix.
        command: command that produced the results, written below the table.
        notes: further lines of Markdown.

    Returns:
        Markdown text.
    """
    text = (
        "\n".join([to_markdown(table, results, command), *notes, ""])
        if notes
        else to_markdown(table, results, command)
    )
    write_text(path.with_suffix(".md"), text)
    rows = {name: [{k: v for k, v in r.items() if k != "counts"} for r in runs] for name, runs in results.items()}
    content = {"title": table.title, "command": command, "rows": rows}
    write_json(path.with_suffix(".json"), content, indent=1)
    _plot(table, results, path.with_suffix(".png"))
    logs = _logs(results)
    curves = path.with_name(f"{path.name}_curves.png")
    if logs:
        write_bytes(curves, to_png(draw_curves(logs)))
    else:
        remove(curves)
    return text


def _logs(results: Results) -> dict[str, list[Log]]:
    """Return the training logs behind the results, by the first row that uses the model."""
    logs: dict[str, list[Log]] = {}
    seen: set[Path] = set()
    for name, runs in results.items():
        paths = [Path(run["counts"]).parents[1] / "log.jsonl" for run in runs if "counts" in run]
        paths = [path for path in paths if path.is_file()]
        if paths and not seen.issuperset(paths):
            logs[name] = [read_log(path) for path in paths]
        seen.update(paths)
    return logs


def to_markdown(table: Table, results: Results, command: str) -> str:
    """Render mean ± standard deviation over the seeds, in percent, and the paired differences to the reference."""
    compared = [m for m in table.metrics if m == table.metrics[0] or m.startswith("PQ")]
    titles = [*map(escape, table.metrics), *(f"Δ {escape(m)} (95%)" for m in compared), "seeds", "minutes"]
    lines = [f"### {escape(table.title)}", "", f"| | {' | '.join(titles)} |", f"|-|{'-|' * len(titles)}"]
    reference = table.reference or table.rows[0].name
    for row in table.rows:
        runs = results[row.name]
        cells = [_cell([r["metrics"].get(m) for r in runs]) for m in table.metrics]
        minutes = _mean([r["training_minutes"] for r in runs])
        cells += ["" if row.name == reference else _difference(runs, results[reference], m) for m in compared]
        cells += [str(len(runs)), minutes]
        lines.append(f"| {escape(row.name)} | {' | '.join(cells)} |")
    some = next((r for runs in results.values() for r in runs), None)
    fence = "`" if "`" not in command else "`` "
    lines += ["", f"{fence}{printable(command)}{fence[::-1]}"]
    if some is not None:
        machine = some["machine"]
        lines += [
            "",
            f"{some['images']} validation images; {name_machine(machine)}; torch {machine['torch']}, commit "
            f"{machine['commit']}, {machine['date']}. In percent, mean ± standard deviation over the seeds; "
            f"Δ is the mean paired difference to {escape(repr(reference))} over the seeds, with its 95% bootstrap "
            f"interval ({_resampled(results)}). Minutes are those of one training run.",
        ]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Escape text, such as the name of a category, so that Markdown shows it as it is."""
    return re.sub(r"[\\`*|<>\[\]&~]|(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])", r"\\\g<0>", printable(text))


def _resampled(results: Results) -> str:
    """Return what the intervals cover: with one training per row, chance in the training is not part of them."""
    every = [run for runs in results.values() for run in runs]
    if len({run["seed"] for run in every}) == 1 and any(run["training_minutes"] for run in every):
        return "resampled images; with one seed it excludes chance in the training, which can be as large"
    return "resampled images and seeds"


def _difference(runs: Sequence[Mapping], reference: Sequence[Mapping], metric: str) -> str:
    """Return the mean difference of equal seeds and, if both have counts, its 95% interval."""
    base = {r["seed"]: r for r in reference}
    pairs = [(r, base[r["seed"]]) for r in runs if r["seed"] in base]
    pairs = [pair for pair in pairs if all(r["metrics"].get(metric) is not None for r in pair)]
    if not pairs:
        return "–"
    mean = f"{100 * statistics.fmean(a['metrics'][metric] - b['metrics'][metric] for a, b in pairs):+.2f}"
    if not all("counts" in r for pair in pairs for r in pair):
        return mean
    own, other = ([read_counts(run["counts"]) for run in side] for side in zip(*pairs, strict=True))
    interval = paired_interval(own, other, metric)
    return mean if interval is None else f"{mean} ({100 * interval[0]:+.2f} … {100 * interval[1]:+.2f})"


def _cell(values: Sequence[float | None]) -> str:
    known = [100 * v for v in values if v is not None]
    if not known:
        return "–"
    mean = f"{statistics.fmean(known):.1f}"
    return f"{mean} ± {statistics.stdev(known):.1f}" if len(known) > 1 else mean


def _mean(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.0f}" if values else "–"


def _plot(table: Table, results: Results, path: Path) -> None:
    """Plot bars of the first metric with the standard deviation, and a dot per seed."""
    from matplotlib.figure import Figure

    metric = table.metrics[0]
    figure = Figure(figsize=(7, 0.5 * len(table.rows) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    for n, row in enumerate(table.rows):
        values = [100 * r["metrics"][metric] for r in results[row.name] if metric in r["metrics"]]
        if values:
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            axes.barh(n, statistics.fmean(values), xerr=spread, color="#9db8d9", ecolor="#33475b", capsize=3)
            axes.plot(values, [n] * len(values), "o", color="#33475b", markersize=3)
    axes.set_yticks(range(len(table.rows)), [row.name for row in table.rows])
    axes.invert_yaxis()
    every = [100 * r["metrics"][metric] for runs in results.values() for r in runs if metric in r["metrics"]]
    if every:
        axes.set_xlim(max(min(every) - 5, 0), max(every) + 2)
    axes.set_xlabel(f"{metric} (%); the axis does not start at 0")
    axes.set_title(table.title)
    write_bytes(path, to_png(figure, dpi=120))
