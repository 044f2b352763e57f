"""Outlines of things and textures of surfaces for procedural scenes."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

Outline = list[np.ndarray]
"""Closed polygons [V, 2] in a unit square around 0; a point is inside if an odd number of them contain it."""


def _ellipse(radius_x: float, radius_y: float) -> np.ndarray:
    turn = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    return np.stack([radius_x * np.cos(turn), radius_y * np.sin(turn)], 1)


def _box(width: float, height: float) -> np.ndarray:
    return np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * (width / 2, height / 2)


def disc(generator: np.random.Generator) -> Outline:
    return [_ellipse(0.5, generator.uniform(0.35, 0.5))]


def rectangle(generator: np.random.Generator) -> Outline:
    return [_box(1, generator.uniform(0.5, 0.9))]


def polygon(generator: np.random.Generator) -> Outline:
    """Return a polygon of five to eight corners, in general not convex."""
    count = int(generator.integers(5, 9))
    turn = (np.arange(count) + generator.uniform(-0.3, 0.3, count)) * 2 * np.pi / count
    radius = generator.uniform(0.28, 0.5, count)
    return [np.stack([radius * np.cos(turn), radius * np.sin(turn)], 1)]


def star(generator: np.random.Generator) -> Outline:
    tips = int(generator.integers(5, 8))
    turn = np.arange(2 * tips) * np.pi / tips
    radius = np.where(np.arange(2 * tips) % 2, generator.uniform(0.18, 0.26), 0.5)
    return [np.stack([radius * np.cos(turn), radius * np.sin(turn)], 1)]


def ring(generator: np.random.Generator) -> Outline:
    """Return a ring, whose hole shows what lies behind it."""
    flat, hole = generator.uniform(0.75, 1), generator.uniform(0.68, 0.82)
    return [_ellipse(0.5, 0.5 * flat), _ellipse(0.5 * hole, 0.5 * flat * hole)]


def bar(generator: np.random.Generator) -> Outline:
    return [_box(1, generator.uniform(0.05, 0.09))]


def cross(generator: np.random.Generator) -> Outline:
    w = generator.uniform(0.06, 0.1)
    corners = [(w, w), (w, 0.5), (-w, 0.5), (-w, w), (-0.5, w), (-0.5, -w), (-w, -w), (-w, -0.5), (w, -0.5)]
    return [np.array([*corners, (w, -w), (0.5, -w), (0.5, w)])]


def rasterise(
    outline: Outline, centre: np.ndarray, scale: float, angle: float, size: tuple[int, int]
) -> np.ndarray:
    """Return the coverage of each pixel by a transformed outline: [H, W] uint8, 255 = inside.

    Args:
        outline: polygons in a unit square around 0.
        centre: (x, y) in pixels.
        scale: pixels per unit.
        angle: rotation in radians.
        size: (height, width) in pixels.
    """
    cos, sin = np.cos(angle), np.sin(angle)
    rotation = np.array([[cos, sin], [-sin, cos]]) * scale
    # OpenCV's integer coordinates are pixel centres; here they have four fractional bits.
    corners = [np.round((part @ rotation + centre - 0.5) * 16).astype(np.int32) for part in outline]
    coverage = np.zeros(size, np.uint8)
    cv2.fillPoly(coverage, corners, (255,), cv2.LINE_AA, shift=4)
    return coverage


def noise(generator: np.random.Generator, size: tuple[int, int], cell: float) -> np.ndarray:
    """Return smooth noise with blobs of about `cell` pixels: [H, W] float32, 0-1."""
    grid = (max(2, round(size[0] / cell)), max(2, round(size[1] / cell)))
    coarse = generator.random(grid, dtype=np.float32)
    return cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC).clip(0, 1)


def _ramp(generator: np.random.Generator, size: tuple[int, int], angle: float | None = None) -> np.ndarray:
    """Return the distance in pixels along a direction: [H, W] float32."""
    angle = generator.uniform(0, np.pi) if angle is None else angle
    rows = np.arange(size[0], dtype=np.float32)[:, None] * np.float32(np.sin(angle))
    return rows + np.arange(size[1], dtype=np.float32) * np.float32(np.cos(angle))


def plain(generator: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    return 0.5 + 0.2 * (noise(generator, size, 60) - 0.5)


def gradient(generator: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    ramp = _ramp(generator, size, generator.uniform(1.2, 1.9))
    return (ramp - ramp.min()) / max(float(np.ptp(ramp)), 1.0)


def stripes(generator: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    period = generator.uniform(6, 14)
    bent = _ramp(generator, size) + 6 * noise(generator, size, 50)
    return 0.5 + 0.5 * np.sin(bent * np.float32(2 * np.pi / period))


def checks(generator: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    cell, angle = generator.uniform(7, 14), generator.uniform(0, np.pi / 2)
    along = np.floor(_ramp(generator, size, angle) / np.float32(cell))
    across = np.floor(_ramp(generator, size, angle + np.pi / 2) / np.float32(cell))
    return 0.25 + 0.5 * ((along + across) % 2)


def grain(generator: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    return noise(generator, size, generator.uniform(1.2, 2.5))


def clouds(generator: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    return 0.65 * noise(generator, size, 32) + 0.35 * noise(generator, size, 11)


Texture = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
"""Generator and (H, W) -> brightness [H, W] float32, 0-1."""


def paint(brightness: np.ndarray, color: np.ndarray, contrast: float) -> np.ndarray:
    """Vary a colour (RGB, 0-255) by ± contrast with brightness ([H, W], 0-1): [H, W, 3] float32, about 0-255."""
    return color.astype(np.float32) + (np.float32(2 * contrast) * (brightness - np.float32(0.5)))[..., None]


def color(generator: np.random.Generator, hue: float, spread: float) -> np.ndarray:
    """Return a random RGB colour, 0-255, whose hue (0-1) is near the given one."""
    hsv = [180 * ((hue + generator.uniform(-spread, spread)) % 1), *generator.uniform((90, 110), (230, 245))]
    return cv2.cvtColor(np.array([[hsv]], np.uint8), cv2.COLOR_HSV2RGB)[0, 0].astype(np.float32)
