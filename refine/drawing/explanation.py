"""The picture of an `Explanation`: one column per rule, results above decisions, the semantic map below."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from refine.drawing.graph import DARK, RADIUS, Point, apart, beside, draw_arrow, draw_dot
from refine.drawing.overlay import (
    MAX_LABELS,
    YELLOW,
    Box,
    contact_sheet,
    contours,
    innermost,
    overlay,
    readable_on,
    segment_colors,
    write_label,
)
from refine.formats.images import from_pil
from refine.fusion import Method
from refine.fusion.explain import Explanation
from refine.fusion.unknown import KEPT
from refine.structures import VOID, PanopticResult, Segment

WIDTH, HEIGHT = 600, 800
"""Of a tile, in pixels; pictures are scaled to fit into it."""
MAX_ARROWS = 12
"""More decisions cover each other; those with the most pixels at stake are drawn."""
MARK = (255, 40, 220)
"""What differs from the heuristic's result, and what is erased."""
REACH = 50
"""How far from what it shares an instance's number may stand, in pixels of a tile."""
ROOM = 4000
"""Pixels of a tile that a mask needs to bear a name beside its number."""
WHITE = (255, 255, 255)

BY = {"heuristic": "score", "shr": "boxes", "srm": "rank", "ocfusion": "O", "strong": "O", "soe": "soft O"}
"""What a rule compares."""


def explanation_sheet(image: Tensor, told: Explanation) -> Tensor:
    """Draw what every rule decided.

    First row: the picture, and what each rule makes of it, hatched where it differs from the heuristic.
    Second row: contested pixels (yellow) under the outlines of all masks, and each rule's decisions, arrows
    from the instance in front to the one behind, marked where the heuristic decides the other way. Only
    pairs that are put to pairwise rules have arrows, the `MAX_ARROWS` with the most shared pixels. What was
    compared stands beside an arrow, the front's value first, if there is room. Third row: confidence of the
    semantic map, and the map before and after Unknown Erasing. "strong" has no column beside "ocfusion": one
    head answers both, and they are the same rule.

    Args:
        image: Tensor[3, H, W] uint8 RGB.
        told: of the same image.

    Returns:
        Tensor[3, h, w] uint8 RGB, tiles `WIDTH` wide.

    Raises:
        ValueError: sizes differ.
    """
    if tuple(image.shape[1:]) != tuple(told.covers.shape):
        raise ValueError(f"explanation_sheet: image {tuple(image.shape[1:])}, told {tuple(told.covers.shape)}")
    methods = [m for m in told.front if not (m == "strong" and "ocfusion" in told.front)]
    tiles = _Tiles(image, told)
    sheet = [tiles.picture(), *(tiles.result(m) for m in methods)]
    sheet += [tiles.contested(), *(tiles.decisions(m) for m in methods)]
    sheet += tiles.semantics()
    return contact_sheet(
        [_padded(tile) for tile, _ in sheet], [title for _, title in sheet], columns=len(methods) + 1, width=WIDTH
    )


class _Tiles:
    """The tiles, each Tensor[3, h, w] with a title; h × w is the size of all of them.

    Args:
        image, told: as in `explanation_sheet`.
    """

    def __init__(self, image: Tensor, told: Explanation) -> None:
        _, height, width = image.shape
        scale = min(WIDTH / width, HEIGHT / height)
        self.size = max(1, round(height * scale)), max(1, round(width * scale))
        self.told = told
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        self.pixels: np.ndarray = cv2.resize(pixels, self.size[::-1], interpolation=how)
        self.contest = self._any(told.covers > 1)
        # The same instance has the same colour everywhere, whether a rule shows it or not.
        labels, scores = told.instances.labels.tolist(), told.instances.scores.tolist()
        classes = [told.categories[label] for label in labels] + list(told.categories)
        self.segments = [
            Segment(n + 1, c.id, n < len(labels), scores[n] if n < len(labels) else None, 0, (0, 0, 0, 0))
            for n, c in enumerate(classes)
        ]
        self.colors = segment_colors(self._panoptic(told.covers * 0)).tolist()

    def picture(self) -> tuple[Tensor, str]:
        return _tensor(self.pixels), f"picture, instances: {len(self.told.instances)}"

    def result(self, method: Method) -> tuple[Tensor, str]:
        drawn = overlay(_tensor(self.pixels), self._panoptic(self.told.shown[method] + 1), labels=False)
        if method == "heuristic":
            return drawn, "heuristic"
        differs = self.told.differs(method)
        title = f"{self._name(method)}, pixels that differ: {int(differs.sum())}"
        return _hatched(drawn, self._any(differs)), title

    def contested(self) -> tuple[Tensor, str]:
        everyone = range(len(self.told.instances))
        canvas, nodes = self._outlined(everyone, 0.7), {}
        if len(everyone) <= MAX_LABELS:
            nodes = self._nodes(everyone)
        drawn = Image.fromarray(canvas)
        draw, font = ImageDraw.Draw(drawn, "RGBA"), ImageFont.load_default(size=14)
        taken: list[Box] = []
        for n, at in nodes.items():
            name = f" {self.told.categories[int(self.told.instances.labels[n])].name}"
            has_room = self._mask(n).sum() > ROOM
            write_label(draw, [at], f"{n + 1}{name if has_room else ''}", font, self.colors[n], taken)
        return from_pil(drawn), f"contested pixels: {int((self.told.covers > 1).sum())}"

    def decisions(self, method: Method) -> tuple[Tensor, str]:
        told = self.told
        asked = [(i, j) for i, j in told.pairs().tolist() if told.asked[i, j]]
        front = told.front[method]
        arrows = [(i, j) if front[i, j] else (j, i) for i, j in asked[:MAX_ARROWS]]
        involved = sorted({n for pair in arrows for n in pair})
        canvas, nodes = self._outlined(involved, 0.45), self._nodes(involved)
        taken = [(x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS) for x, y in nodes.values()]
        for i, j in arrows:
            draw_arrow(canvas, nodes[i], nodes[j], WHITE if told.front["heuristic"][i, j] else MARK)
        for n, (x, y) in nodes.items():
            draw_dot(canvas, (x, y), self.colors[n])
        drawn = Image.fromarray(canvas)
        draw, font = ImageDraw.Draw(drawn, "RGBA"), ImageFont.load_default(size=13)
        for n, at in nodes.items():
            draw.text(at, str(n + 1), font=font, anchor="mm", fill=readable_on(self.colors[n]))
        claims = told.claims(method)
        if claims is not None:
            for i, j in arrows:
                text = f"{claims[i, j]:.2f} : {claims[j, i]:.2f}"
                write_label(draw, beside(nodes[i], nodes[j]), text, font, DARK, taken)
        some = f"{len(arrows)} of {len(asked)}" if len(asked) > len(arrows) else f"{len(asked)}"
        return from_pil(drawn), f"{self._name(method)}: front to back by {BY[method]} ({some})"

    def semantics(self) -> list[tuple[Tensor, str]]:
        """Confidence, map before and map after Unknown Erasing."""
        told = self.told
        levels = (told.sem_confidence.clamp(0, 1) * 255).to(torch.uint8)
        heat = cv2.applyColorMap(self._nearest(levels), cv2.COLORMAP_VIRIDIS)[..., ::-1]
        gone = told.erased != KEPT
        after = _hatched(self._classes(torch.where(gone, VOID, told.sem_seg)), self._any(gone))
        regions, applied = len(told.erased[gone].unique()), told.config.unknown_erasing
        title = f"after unknown erasing{'' if applied else ' (off in fusion)'}, regions: {regions}"
        return [
            (_tensor(np.ascontiguousarray(heat)), "semantic confidence, 0 (blue) to 1 (yellow)"),
            (self._classes(told.sem_seg), "semantic map"),
            (after, title),
        ]

    def _classes(self, labels: Tensor) -> Tensor:
        """A semantic map with the names of its classes."""
        ids = self._nearest(labels + 1)
        segments = []
        for index in np.unique(ids[ids > 0]).tolist():
            mask = (ids == index).astype(np.uint8)
            x, y, width, height = cv2.boundingRect(mask)
            category = self.told.categories[index - 1]
            segments.append(Segment(index, category.id, False, None, int(mask.sum()), (x, y, width, height)))
        return overlay(_tensor(self.pixels), PanopticResult(torch.from_numpy(ids), segments, self.told.categories))

    def _panoptic(self, ids: Tensor) -> PanopticResult:
        """Instance n as n + 1, class c as N + c + 1, nothing as 0, at the size of the tiles."""
        return PanopticResult(torch.from_numpy(self._nearest(ids)), self.segments, self.told.categories)

    def _name(self, method: Method) -> str:
        both = method == "ocfusion" and "strong" in self.told.front
        return "ocfusion, strong" if both else method

    def _outlined(self, instances: Sequence[int], light: float) -> np.ndarray:
        """The picture darkened, contested pixels tinted, some masks outlined: [h, w, 3] uint8."""
        canvas = self.pixels.astype(np.float32) * light
        canvas[self.contest] = canvas[self.contest] * 0.5 + np.array(YELLOW, np.float32) * 0.5
        canvas = canvas.astype(np.uint8)
        for n in instances:
            lines, _ = cv2.findContours(self._mask(n).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(canvas, lines, -1, self.colors[n], 2, cv2.LINE_AA)
        return canvas

    def _nodes(self, instances: Sequence[int]) -> dict[int, Point]:
        """A point (x, y) for each of some instances: where it alone covers the picture, near to what it shares,
        as far as there is such a place."""
        single = self._nearest(self.told.covers) == 1
        around, points = np.ones((2 * REACH + 1, 2 * REACH + 1), np.uint8), []
        for n in instances:
            mask = self._mask(n)
            near = cv2.dilate((mask & self.contest).astype(np.uint8), around) > 0
            places = (mask & single & near, mask & single, mask)
            points.append(innermost(next((place for place in places if place.any()), mask)))
        moved = apart(np.array(points, np.float64).reshape(-1, 2), 2 * RADIUS + 30)
        inside = moved.clip(RADIUS, np.maximum(np.array(self.size[::-1]) - RADIUS, RADIUS))
        return {n: (float(x), float(y)) for n, (x, y) in zip(instances, inside, strict=True)}

    def _mask(self, n: int) -> np.ndarray:
        return self._any(self.told.runs[torch.tensor([n])].dense()[0])

    def _nearest(self, values: Tensor) -> np.ndarray:
        """[H, W] of any type at the size of the tiles."""
        rows, columns = (
            ((np.arange(to) + 0.5) * of / to).astype(np.int64)
            for to, of in zip(self.size, values.shape, strict=True)
        )
        return np.ascontiguousarray(values.numpy()[rows[:, None], columns])

    def _any(self, mask: Tensor) -> np.ndarray:
        """Tensor[H, W] bool at the size of the tiles; no pixel gets lost."""
        return cv2.resize(mask.float().numpy(), self.size[::-1], interpolation=cv2.INTER_AREA) > 0


def _hatched(picture: Tensor, mask: np.ndarray) -> Tensor:
    """Stripes over the pixels of a mask, and a line around them."""
    pixels = picture.permute(1, 2, 0).numpy().astype(np.float32)
    y, x = np.indices(mask.shape)
    strength = np.maximum(mask * ((x + y) % 10 < 3) * 0.8, contours(mask, 2))[..., None]
    return _tensor((pixels * (1 - strength) + np.array(MARK, np.float32) * strength).astype(np.uint8))


def _padded(tile: Tensor) -> Tensor:
    """A tile in the middle of `WIDTH` columns."""
    left = (WIDTH - tile.shape[2]) // 2
    return F.pad(tile, (left, WIDTH - tile.shape[2] - left), value=255)


def _tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)
