"""Learning curves of training runs."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Log = Sequence[Mapping[str, Any]]
"""Lines of a run's log.jsonl: "step", "group" ("train", "val" or "message") and values by name."""

PANELS = {
    "loss": "loss",
    "loss_rpn": "proposals",
    "loss_cls": "classes of the boxes",
    "loss_box": "boxes",
    "loss_mask": "masks",
    "loss_sem": "semantic map",
    "loss_occlusion": "occlusion",
}
"""Title of a panel by the beginning of the names of its losses."""


def draw_curves(runs: Mapping[str, Sequence[Log]]) -> Figure:
    """Draw the training losses and the validation PQ of runs over their updates.

    One panel per kind of loss and one for PQ; kinds without values are left out. Of losses that are numbered by
    stage or iteration, the last one is drawn. The two losses of the proposals are added. A line is the mean over
    the logs of a run, and the band around it their range.

    Args:
        runs: logs by the name of the run, one log per seed. Several names get a legend.

    Returns:
        Figure of 3 x 2.4 inches per panel.
    """
    from matplotlib.figure import Figure

    panels = {
        title: {name: [_losses(log, kind) for log in logs] for name, logs in runs.items()}
        for kind, title in PANELS.items()
    }
    panels["PQ on the validation data (%)"] = {
        name: [{line["step"]: 100 * line["PQ"] for line in log if _known(line, "val", "PQ")} for log in logs]
        for name, logs in runs.items()
    }
    panels = {title: lines for title, lines in panels.items() if any(any(points) for points in lines.values())}
    columns = min(max(len(panels), 1), 4)
    rows = -(-max(len(panels), 1) // columns)
    figure = Figure(figsize=(3 * columns, 2.4 * rows), layout="constrained")
    for n, (title, lines) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, n + 1)
        for color, (name, points) in enumerate(lines.items()):
            _draw_line(axes, points, name, f"C{color % 10}")
        axes.set_title(title, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
        if n == 0 and len(runs) > 1:
            axes.legend(fontsize=7)
    figure.supxlabel("updates", fontsize=8)
    return figure


def to_png(figure: Figure, dpi: int = 100) -> bytes:
    """Render a figure without a display as the contents of a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    content = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(content, dpi=dpi, format="png")
    return content.getvalue()


def _losses(log: Log, kind: str) -> dict[int, float]:
    """Return the losses of one kind by update, the last stage or iteration of each line only."""
    found = {}
    for line in log:
        names = [name for name in line if name == kind or (kind != "loss" and name.startswith(f"{kind}_"))]
        numbered = [name for name in names if name[-1].isdigit()]
        if numbered:
            names = [max(numbered, key=lambda name: int(name.rsplit("_", 1)[1]))]
        if names and all(_known(line, "train", name) for name in names):
            found[int(line["step"])] = sum(line[name] for name in names)
    return found


def _known(line: Mapping[str, Any], group: str, name: str) -> bool:
    """Return whether a line has a finite value; log.jsonl has null for NaN."""
    return line.get("group") == group and line.get(name) is not None and math.isfinite(line[name])


def _draw_line(axes: Any, seeds: Sequence[Mapping[int, float]], name: str, color: str) -> None:
    """Draw the mean over seeds at the updates that at least one of them has, and their range."""
    steps = sorted(set().union(*seeds))
    if not steps:
        return
    values = [[points[step] for points in seeds if step in points] for step in steps]
    marker = "o" if len(steps) < 20 else None
    axes.plot(
        steps, list(map(fmean, values)), color=color, label=name, linewidth=1.2, marker=marker, markersize=2.5
    )
    if len(seeds) > 1:
        axes.fill_between(
            steps, list(map(min, values)), list(map(max, values)), color=color, alpha=0.2, linewidth=0
        )
