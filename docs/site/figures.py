"""Figures of the network and of the exchange. Every box is a module or function of the code, named as there."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from names import ROOT

from refine.fusion import fuse
from refine.modeling.config import BackboneConfig, ModelConfig, OcclusionConfig
from refine.modeling.ibpp import IBPP
from refine.modeling.mask_head import MaskHead
from refine.modeling.model import PanopticModel
from refine.modeling.semantic_head import RefiningSemanticHead, SemanticHead
from refine.ops.roi import align, roi_align_levels, roi_flatten

SHARED, INSTANCE, SEMANTIC, FUSION = "#e8eaf0", "#ffe3c7", "#cfe8d5", "#d7e3fb"
"""Colours of the parts: shared by both branches, instance branch, semantic branch, fusion."""


@dataclass(frozen=True)
class Box:
    """Box of a figure: centre and text in units of the figure, about one centimetre."""

    x: float
    y: float
    title: str
    note: str
    color: str
    width: float = 3.2
    height: float = 1.35


def draw_network(path: Path) -> None:
    """Draw the parts of `PanopticModel`, which are read from an instance of it.

    Raises:
        LookupError: the model has a part that the figure does not place, or lacks one.
    """
    config = ModelConfig(BackboneConfig("resnet18", weights=None, res2_channels=64), occlusion=OcclusionConfig())
    model = PanopticModel(config, 2, 4)
    at = {
        "backbone": (1.8, 2.7, SHARED, "strides 4 … 32"),
        "fpn": (5.6, 2.7, SHARED, "P2 … P6"),
        "rpn": (9.4, 4.9, INSTANCE, "proposals"),
        "box_heads": (13.2, 4.9, INSTANCE, "boxes, scores, classes"),
        "semantic_head": (9.4, 0.8, SEMANTIC, "F_sem, P_sem(0)  (eq. 1)"),
        "ibpp": (13.2, 2.7, FUSION, "T iterations  (eq. 2–6)"),
        "occlusion": (17.0, 4.9, FUSION, "O(i, j)"),
    }
    children = dict(model.named_children())
    if set(children) != set(at):
        raise LookupError(f"the figure has {sorted(at)}, but the model {sorted(children)}")
    boxes = {
        name: Box(x, y, name, f"{type(children[name]).__name__}\n{note}", color)
        for name, (x, y, color, note) in at.items()
    }
    boxes["fuse"] = Box(17.0, 2.7, fuse.__name__, "rule, Unknown Erasing\npanoptic map", FUSION)
    axes = _axes(18.8, 5.2)
    for box in boxes.values():
        _box(axes, box)
    for source, target, text in [
        ("backbone", "fpn", ""),
        ("fpn", "rpn", ""),
        ("fpn", "semantic_head", ""),
        ("rpn", "box_heads", ""),
        ("box_heads", "ibpp", "boxes"),
        ("semantic_head", "ibpp", ""),
        ("fpn", "ibpp", "P2 … P5"),
        ("ibpp", "occlusion", "masks"),
        ("ibpp", "fuse", ""),
        ("occlusion", "fuse", ""),
    ]:
        _arrow(axes, boxes[source], boxes[target], text)
    _save(axes, path)


def draw_exchange(path: Path) -> None:
    """Draw one iteration of `IBPP`, with the equations of the paper."""
    steps = {
        "f_ins": Box(2.2, 5.6, _name(roi_align_levels), "f_ins of P2 … P5  (eq. 2)", SHARED, 4),
        "f_sem": Box(2.2, 3.6, _name(align), "f_sem of F_sem", SEMANTIC, 4),
        "p": Box(2.2, 1.6, _name(align), "p of P_sem(t−1)  (eq. 3)", SEMANTIC, 4),
        "mask": Box(
            7.6, 3.6, _name(MaskHead), f"{_name(IBPP.instance_step)}  (eq. 4)\nm(t), 28 × 28 per box", INSTANCE, 4
        ),
        "flatten": Box(
            12.7, 3.6, _name(roi_flatten), "canvas A(t), one channel\nper thing class  (eq. 5)", INSTANCE, 4
        ),
        "sem": Box(
            17.8,
            3.6,
            _name(RefiningSemanticHead),
            f"{_name(IBPP.semantic_step)}  (eq. 6)\nP_sem(t), stride 4",
            SEMANTIC,
            4.4,
        ),
        "first": Box(17.8, 1.0, _name(SemanticHead), "F_sem and P_sem(0)", SEMANTIC, 4.4),
    }
    axes = _axes(20.2, 6.4)
    for box in steps.values():
        _box(axes, box)
    for source, target, text in [
        ("f_ins", "mask", "sum"),
        ("f_sem", "mask", ""),
        ("p", "mask", "concat"),
        ("mask", "flatten", "sigmoid"),
        ("flatten", "sem", ""),
        ("first", "sem", "F_sem"),
    ]:
        _arrow(axes, steps[source], steps[target], text)
    axes.plot([17.8, 17.8, 0.0, 0.0], [4.35, 6.45, 6.45, 1.6], color="#7a2f8f", lw=1.3, clip_on=False)
    axes.annotate("", xy=(0.2, 1.6), xytext=(-0.02, 1.6), arrowprops={"arrowstyle": "-|>", "color": "#7a2f8f"})
    axes.text(
        9.9, 6.52, "P_sem(t) is the input of iteration t + 1", ha="center", va="bottom", fontsize=9, color="#7a2f8f"
    )
    _save(axes, path)


def draw_sheet(path: Path) -> None:
    """Draw the sheet of docs/fuse.md by running the page's Python."""
    blocks = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "docs/fuse.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), redirect_stdout(io.StringIO()):
        exec("\n".join(blocks), {})
        shutil.copyfile("why.png", path)


def _name(part: Callable[..., Any]) -> str:
    return part.__name__


def _axes(width: float, height: float) -> Axes:
    figure = Figure(figsize=(width / 2, height / 2))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(-0.2, width)
    axes.set_ylim(-0.1, height + 0.6)
    axes.set_axis_off()
    return axes


def _box(axes: Axes, box: Box) -> None:
    corner = (box.x - box.width / 2, box.y - box.height / 2)
    style = "round,pad=0,rounding_size=0.15"
    axes.add_patch(FancyBboxPatch(corner, box.width, box.height, style, fc=box.color, ec="#444", lw=0.9))
    axes.text(
        box.x, box.y + 0.36, box.title, ha="center", va="center", fontsize=10, family="monospace", weight="bold"
    )
    axes.text(box.x, box.y - 0.22, box.note, ha="center", va="center", fontsize=8.5, linespacing=1.25)


def _arrow(axes: Axes, source: Box, target: Box, text: str) -> None:
    """Draw an arrow between the nearest sides of two boxes."""
    if abs(source.x - target.x) > (source.width + target.width) / 2:
        side = 1 if target.x > source.x else -1
        start, end = (source.x + side * source.width / 2, source.y), (target.x - side * target.width / 2, target.y)
    else:
        side = 1 if target.y > source.y else -1
        start, end = (
            (source.x, source.y + side * source.height / 2),
            (target.x, target.y - side * target.height / 2),
        )
    axes.annotate("", xy=end, xytext=start, arrowprops={"arrowstyle": "-|>", "color": "#333", "lw": 1.1})
    if text:
        x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
        axes.text(
            x,
            y + 0.12,
            text,
            ha="center",
            va="bottom",
            fontsize=8.5,
            color="#333",
            bbox={"fc": "white", "ec": "none", "pad": 0.5},
        )


def _save(axes: Axes, path: Path) -> None:
    assert isinstance(axes.figure, Figure)
    with matplotlib.rc_context({"svg.hashsalt": "refine", "svg.fonttype": "path"}):
        axes.figure.savefig(
            path, metadata={"Date": None} if path.suffix == ".svg" else None, facecolor="white", dpi=110
        )
