"""Sheet that draws an `Explanation`: one column per rule, results above decisions, the semantic map below."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox
from torch import Tensor

from refine.drawing.overlay import (
    MAX_LABELS,
    innermost,
    overlay,
    readable_on,
    segment_colors,
    short_name,
)
from refine.fusion import Method
from refine.fusion.explain import Explanation
from refine.fusion.unknown import KEPT
from refine.structures import VOID, PanopticResult, Segment

WIDTH, HEIGHT = 600, 800
"""Maximum size in pixels of a tile, to which images are scaled."""
GAP, HEAD = 14, 30  # pixels between tiles, and height of their titles
TITLE: dict[str, Any] = {"fontsize": 12, "loc": "left", "pad": 6}
MAX_ARROWS = 12
"""Maximum number of arrows, for the pairs that share the most pixels; more would cover each other."""
MARK = (1.0, 0.16, 0.86)
"""Colour of differences from the heuristic's result, and of erased regions."""
CONTESTED = (0.98, 0.78, 0.12, 0.5)
APART = 52
"""Minimum distance in pixels between numbers."""
REACH = 50
"""Maximum distance in pixels between an instance's number and its contested pixels."""
BY = {"heuristic": "score", "shr": "boxes", "srm": "rank", "ocfusion": "O", "strong": "O", "soe": "soft O"}
"""Quantity that each rule compares."""


def explanation_sheet(image: Tensor, explanation: Explanation) -> Tensor:
    """Draw the decisions and results of every rule.

    First row: the image, and the result of each rule, hatched where it differs from the heuristic. Second row:
    contested pixels (yellow) under the outlines of all masks, and the decisions of each rule as arrows from the
    instance in front to the one behind, marked where the heuristic decides the other way. Only pairs that pairwise
    rules decide have arrows, at most the `MAX_ARROWS` pairs with the most shared pixels. The compared values are
    written on an arrow if there is room, that of the front instance first. Third row: confidence of the semantic
    map, and the map before and after Unknown Erasing. "strong" shares the column of "ocfusion", because with one
    occlusion head the two rules are the same.

    Args:
        image: Tensor[3, H, W] uint8 RGB.
        explanation: explanation of the image's fusion.

    Returns:
        Tensor[3, h, w] uint8 RGB with tiles `WIDTH` wide.

    Raises:
        ValueError: sizes differ.
    """
    if tuple(image.shape[1:]) != tuple(explanation.covers.shape):
        sizes = tuple(image.shape[1:]), tuple(explanation.covers.shape)
        raise ValueError(f"explanation_sheet: image {sizes[0]}, explanation {sizes[1]}")
    methods = [m for m in explanation.front if not (m == "strong" and "ocfusion" in explanation.front)]
    tiles = _Tiles(image, explanation)
    rows: list[list[Callable[[Axes], None]]] = [
        [tiles.image, *(partial(tiles.result, method=m) for m in methods)],
        [tiles.contested, *(partial(tiles.decisions, method=m) for m in methods)],
        [tiles.confidence, tiles.semantic_map, tiles.after_erasing],
    ]
    return _render(rows, tiles.size)


def _render(rows: Sequence[Sequence[Callable[[Axes], None]]], size: tuple[int, int]) -> Tensor:
    """Draw rows of tiles of `size` (height, width), each centred in a cell that is `WIDTH` wide."""
    height = len(rows) * (size[0] + HEAD + GAP) + GAP
    width = max(map(len, rows)) * (WIDTH + GAP) + GAP
    figure = Figure((width / 100, height / 100), dpi=100, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    for r, row in enumerate(rows):
        bottom = height - (r + 1) * (size[0] + HEAD + GAP)
        for c, draw in enumerate(row):
            left = GAP + c * (WIDTH + GAP) + (WIDTH - size[1]) // 2
            frame = (left / width, bottom / height, size[1] / width, size[0] / height)
            axes = figure.add_axes(frame, xlim=(0, size[1]), ylim=(size[0], 0))
            axes.set_axis_off()
            draw(axes)
    with warnings.catch_warnings():  # about characters missing in the font, which are drawn as boxes
        warnings.simplefilter("ignore", UserWarning)
        canvas.draw()
    return torch.from_numpy(np.array(canvas.buffer_rgba())[..., :3]).permute(2, 0, 1).contiguous()


class _Tiles:
    """Tiles of a sheet; each method draws one into axes of `size` (height, width) in pixels, y downwards.

    Args:
        image, explanation: arguments of `explanation_sheet`.
    """

    def __init__(self, image: Tensor, explanation: Explanation) -> None:
        _, height, width = image.shape
        scale = min(WIDTH / width, HEIGHT / height)
        self.size = max(1, round(height * scale)), max(1, round(width * scale))
        self.explanation = explanation
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        self.pixels: np.ndarray = cv2.resize(pixels, self.size[::-1], interpolation=how)
        both = {"ocfusion", "strong"} <= explanation.front.keys()
        self.names = {m: "ocfusion, strong" if both and m == "ocfusion" else m for m in explanation.front}
        self.contest = self._any(explanation.covers > 1)
        # An instance has the same colour in all tiles.
        labels, scores = explanation.instances.labels.tolist(), explanation.instances.scores.tolist()
        classes = [explanation.categories[label] for label in labels] + list(explanation.categories)
        self.segments = [
            Segment(n + 1, c.id, n < len(labels), scores[n] if n < len(labels) else None, 0, (0, 0, 0, 0))
            for n, c in enumerate(classes)
        ]
        self.colors = segment_colors(self._panoptic(explanation.covers * 0)) / 255

    def image(self, axes: Axes) -> None:
        axes.set_title(f"image, instances: {len(self.explanation.instances)}", **TITLE)
        self._show(axes, self.pixels)

    def result(self, axes: Axes, method: Method) -> None:
        self._show(axes, self._overlay(self._panoptic(self.explanation.shown[method] + 1)))
        differs = self.explanation.differs(method)
        count = "" if method == "heuristic" else f", pixels that differ: {int(differs.sum())}"
        axes.set_title(self.names[method] + count, **TITLE)
        _hatch(axes, self._any(differs))

    def contested(self, axes: Axes) -> None:
        explanation = self.explanation
        axes.set_title(f"contested pixels: {int((explanation.covers > 1).sum())}", **TITLE)
        instances, labels = range(len(explanation.instances)), explanation.instances.labels.tolist()
        self._outlines(axes, instances, 0.7)
        if len(instances) <= MAX_LABELS:
            names = [short_name(explanation.categories[labels[n]].name) for n in instances]
            self._numbers(axes, instances, [f"{n + 1} {name}" for n, name in enumerate(names)])

    def decisions(self, axes: Axes, method: Method) -> None:
        explanation = self.explanation
        pairs = [(i, j) for i, j in explanation.pairs().tolist() if explanation.overlapping[i, j]]
        arrows = [(i, j) if explanation.front[method][i, j] else (j, i) for i, j in pairs[:MAX_ARROWS]]
        some = f"{len(arrows)} of {len(pairs)}" if len(pairs) > len(arrows) else f"{len(pairs)}"
        axes.set_title(f"{self.names[method]}: front to back by {BY[method]} ({some})", **TITLE)
        involved = sorted({n for pair in arrows for n in pair})
        self._outlines(axes, involved, 0.45)
        nodes = self._numbers(axes, involved, [f"{n + 1}" for n in involved])
        claims, taken = explanation.claims(method), [node.get_window_extent() for node in nodes.values()]
        for i, j in arrows:
            color = "white" if explanation.front["heuristic"][i, j] else MARK
            _arrow(axes, nodes[i], nodes[j], color)
            if claims is not None:
                middle = np.add(nodes[i].xy, nodes[j].xy) / 2
                _label(axes, (middle[0], middle[1]), f"{claims[i, j]:.2f} : {claims[j, i]:.2f}", taken)

    def confidence(self, axes: Axes) -> None:
        axes.set_title("confidence of the semantic map", **TITLE)
        values = self._nearest(self.explanation.sem_confidence.float())
        extent = (0, self.size[1], self.size[0], 0)
        shown = axes.imshow(values, "viridis", vmin=0, vmax=1, extent=extent, aspect="auto")
        scale = axes.inset_axes((0.62, 0.05, 0.33, 0.025))
        bar = axes.figure.colorbar(shown, cax=scale, orientation="horizontal", ticks=[0, 0.5, 1])
        bar.ax.tick_params(colors="white", labelsize=9, pad=1, length=0, labeltop=True, labelbottom=False)
        bar.outline.set_edgecolor("white")

    def semantic_map(self, axes: Axes) -> None:
        axes.set_title("semantic map", **TITLE)
        self._classes(axes, self.explanation.sem_seg)

    def after_erasing(self, axes: Axes) -> None:
        gone = self.explanation.erased != KEPT
        regions, applied = len(self.explanation.erased[gone].unique()), self.explanation.config.unknown_erasing
        axes.set_title(f"after Unknown Erasing{'' if applied else ' (off in fusion)'}, regions: {regions}", **TITLE)
        self._classes(axes, torch.where(gone, VOID, self.explanation.sem_seg))
        _hatch(axes, self._any(gone))

    def _classes(self, axes: Axes, labels: Tensor) -> None:
        """Draw a semantic map with the names of its classes."""
        ids = self._nearest(labels + 1)
        segments = []
        for index in np.unique(ids[ids > 0]).tolist():
            mask = (ids == index).astype(np.uint8)
            x, y, width, height = cv2.boundingRect(mask)
            category = self.explanation.categories[index - 1]
            segments.append(Segment(index, category.id, False, None, int(mask.sum()), (x, y, width, height)))
        result = PanopticResult(torch.from_numpy(ids), segments, self.explanation.categories)
        self._show(axes, self._overlay(result, labels=True))

    def _overlay(self, result: PanopticResult, labels: bool = False) -> np.ndarray:
        return (
            overlay(torch.from_numpy(self.pixels).permute(2, 0, 1), result, labels=labels).permute(1, 2, 0).numpy()
        )

    def _panoptic(self, ids: Tensor) -> PanopticResult:
        """Return a result at the size of the tiles: instance n as n + 1, class c as N + c + 1, void as 0."""
        return PanopticResult(torch.from_numpy(self._nearest(ids)), self.segments, self.explanation.categories)

    def _show(self, axes: Axes, pixels: np.ndarray) -> None:
        axes.imshow(pixels, extent=(0, self.size[1], self.size[0], 0), aspect="auto", interpolation="nearest")

    def _outlines(self, axes: Axes, instances: Sequence[int], light: float) -> None:
        """Draw the darkened image with contested pixels tinted and the outlines of some masks."""
        self._show(axes, (self.pixels * light).astype(np.uint8))
        self._show(axes, self.contest[..., None] * np.array(CONTESTED))
        lines, colors = [], []
        for n in instances:
            found, _ = cv2.findContours(self._mask(n).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
            lines += [line[:, 0] + 0.5 for line in found]
            colors += [self.colors[n]] * len(found)
        axes.add_collection(PolyCollection(lines, facecolors="none", edgecolors=colors, linewidths=1.6))

    def _numbers(self, axes: Axes, instances: Sequence[int], texts: Sequence[str]) -> dict[int, Annotation]:
        """Write a text on each instance, preferably on pixels of that instance alone, near its contested pixels."""
        single = self._nearest(self.explanation.covers) == 1
        around, points = np.ones((2 * REACH + 1, 2 * REACH + 1), np.uint8), []
        for n in instances:
            mask = self._mask(n)
            near = cv2.dilate((mask & self.contest).astype(np.uint8), around) > 0
            regions = (mask & single & near, mask & single, mask)
            points.append(innermost(next((region for region in regions if region.any()), mask)))
        moved = apart(np.array(points, np.float64).reshape(-1, 2), APART)
        inside = moved.clip(12, np.maximum(np.array(self.size[::-1]) - 12, 12))
        style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 9, "parse_math": False}
        nodes = {}
        for n, text, (x, y) in zip(instances, texts, inside.tolist(), strict=True):
            color = self.colors[n]
            plate = {"boxstyle": "round,pad=0.3,rounding_size=0.8", "fc": color, "ec": "black", "lw": 0.8}
            nodes[n] = axes.annotate(text, (x, y), color=readable_on(255 * color), bbox=plate, **style)
        return nodes

    def _mask(self, n: int) -> np.ndarray:
        return self._any(self.explanation.runs[torch.tensor([n])].dense()[0])

    def _nearest(self, values: Tensor) -> np.ndarray:
        """Resize [H, W] of any dtype to the size of the tiles."""
        rows, columns = (
            ((np.arange(to) + 0.5) * of / to).astype(np.int64)
            for to, of in zip(self.size, values.shape, strict=True)
        )
        return np.ascontiguousarray(values.numpy()[rows[:, None], columns])

    def _any(self, mask: Tensor) -> np.ndarray:
        """Resize Tensor[H, W] bool to the size of the tiles; a tile pixel is true if any of its pixels is."""
        return cv2.resize(mask.float().numpy(), self.size[::-1], interpolation=cv2.INTER_AREA) > 0


def apart(points: np.ndarray, least: float) -> np.ndarray:
    """Move points, [K, 2] float, away from each other until all are about `least` pixels apart."""
    order = np.arange(len(points))
    for _ in range(50):
        delta = points[:, None] - points
        delta[..., 0] += 1e-3 * np.sign(order[:, None] - order)  # equal points move sideways
        distance = np.hypot(delta[..., 0], delta[..., 1]) + np.eye(len(points))
        step = 0.5 * np.maximum(least - distance, 0) / distance
        points = points + (step[..., None] * delta).sum(1)  # delta is 0 on the diagonal
    return points


def _hatch(axes: Axes, mask: np.ndarray) -> None:
    """Hatch the pixels of a mask, and draw a line around them."""
    if not mask.any():
        return
    y, x = (np.arange(-1, n + 1) + 0.5 for n in mask.shape)
    padded = np.pad(mask, 1).astype(float)
    stripes = axes.contourf(x, y, padded, levels=[0.5, 1.5], colors="none", hatches=["////"])
    stripes.set(edgecolor=MARK, linewidth=0)
    axes.contour(x, y, padded, levels=[0.5], colors=[MARK], linewidths=1.5)


def _arrow(axes: Axes, start: Annotation, end: Annotation, color: str | tuple[float, float, float]) -> None:
    """Draw an arrow with a dark rim from one number to another."""
    shape = {"arrowstyle": "-|>", "connectionstyle": "arc3,rad=0.12", "shrinkA": 9, "shrinkB": 9}
    for paint, width, head in (("black", 4.5, 17), (color, 2.0, 15)):
        arrow = shape | {"color": paint, "lw": width, "mutation_scale": head}
        axes.annotate("", end.xy, start.xy, arrowprops=arrow, zorder=2)


def _label(axes: Axes, position: tuple[float, float], text: str, taken: list[Bbox]) -> None:
    """Write a label unless it would cover a box in `taken`; add its box to `taken`."""
    style = {"boxstyle": "round,pad=0.2", "fc": "black", "ec": "none", "alpha": 0.75}
    label = axes.annotate(text, position, color="white", fontsize=8, ha="center", va="center", bbox=style)
    box = label.get_window_extent()
    if box.count_overlaps(taken):
        label.remove()
    else:
        taken.append(box)
