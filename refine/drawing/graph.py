"""Numbered dots in a picture, and arrows between them; pictures are [h, w, 3] uint8 RGB."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

RADIUS = 11
"""Of a dot, in pixels."""
HEAD = 12
"""Length of an arrow's head, in pixels."""
SHIFT = 4
"""Bits after the point in coordinates for OpenCV."""
DARK = (20, 20, 20)
Point = tuple[float, float]
"""(x, y) in pixels."""


def apart(points: np.ndarray, least: float) -> np.ndarray:
    """Push points, [K, 2] float, away from each other until all are `least` apart, or nearly so."""
    order = np.arange(len(points))
    for _ in range(50):
        delta = points[:, None] - points
        delta[..., 0] += 1e-3 * np.sign(order[:, None] - order)  # equal points part sideways
        distance = np.hypot(delta[..., 0], delta[..., 1]) + np.eye(len(points))
        step = 0.5 * np.maximum(least - distance, 0) / distance
        points = points + (step[..., None] * delta).sum(1)  # delta is 0 on the diagonal
    return points


def draw_arrow(canvas: np.ndarray, start: Point, end: Point, color: Sequence[int]) -> None:
    """An arrow from dot to dot, with a dark rim, in place."""
    along = _direction(start, end)
    across = np.array([-along[1], along[0]])
    length = max(float(np.hypot(*np.subtract(end, start))) - 2 * RADIUS, HEAD)
    tail = np.array(start) + RADIUS * along
    neck = tail + (length - HEAD) * along
    head = _fixed(np.array([neck + HEAD * along, neck + HEAD / 2 * across, neck - HEAD / 2 * across]))
    shaft = _fixed(np.array([tail, neck])).tolist()
    for paint, width, rim in ((DARK, 5, 3), (color, 2, 1)):
        cv2.line(canvas, shaft[0], shaft[1], paint, width, cv2.LINE_AA, SHIFT)
        cv2.fillConvexPoly(canvas, head, paint, cv2.LINE_AA, SHIFT)
        cv2.polylines(canvas, [head], True, paint, rim, cv2.LINE_AA, SHIFT)


def draw_dot(canvas: np.ndarray, middle: Point, color: Sequence[int]) -> None:
    """A dot of a colour, for a number to stand on, in place."""
    at, radius = _fixed(np.array(middle)).tolist(), RADIUS << SHIFT
    cv2.circle(canvas, at, radius, color, -1, cv2.LINE_AA, SHIFT)
    cv2.circle(canvas, at, radius, DARK, 1, cv2.LINE_AA, SHIFT)


def beside(start: Point, end: Point) -> list[Point]:
    """Places for the label of an arrow: beside its middle, on either side."""
    along, middle = _direction(start, end), np.add(start, end) / 2
    off = np.array([-along[1] * 40, along[0] * 16])  # a label is wider than high
    return [tuple(middle + side * off) for side in (1, -1, 1.7, -1.7)]


def _direction(start: Point, end: Point) -> np.ndarray:
    """Unit vector [2]; to the right if both are one point."""
    delta = np.subtract(end, start)
    length = float(np.hypot(*delta))
    return delta / length if length else np.array([1.0, 0.0])


def _fixed(points: np.ndarray) -> np.ndarray:
    """Coordinates of pixels as OpenCV takes fractions: int32, in units of 2^-SHIFT."""
    return np.round((points - 0.5) * (1 << SHIFT)).astype(np.int32)
