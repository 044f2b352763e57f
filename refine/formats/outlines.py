"""Outlines of masks along the edges of their pixels, so that filling them gives the same pixels back."""

from __future__ import annotations

import cv2
import numpy as np

Ring = np.ndarray
"""[N, 2] int64, corners x, y in pixels from the top left corner of the image; the last is not the first again."""


def outlines(mask: np.ndarray) -> list[list[Ring]]:
    """Trace a mask along pixel edges.

    Every 4-connected component is one polygon: its outer ring, then one ring per hole. Rings are simple, and touch
    each other at single points at most, as the Simple Features standard (ISO 19125) and RFC 7946 want it. Outer
    rings run counterclockwise if y points up (clockwise on the screen), holes the other way round.

    Args:
        mask: [H, W] bool.

    Returns:
        Polygons, each a list of rings; only corners are listed.
    """
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4, ltype=cv2.CV_32S)
    polygons: list[list[Ring]] = [[] for _ in range(count - 1)]
    for component, ring in _rings(np.pad(labels, 1)):
        x, y = ring.T
        is_outer = x @ np.roll(y, -1) > y @ np.roll(x, -1)
        polygons[component - 1].insert(0 if is_outer else len(polygons[component - 1]), ring)
    return polygons


def _rings(labels: np.ndarray) -> list[tuple[int, Ring]]:
    """Return the component and the corners of each ring.

    Args:
        labels: [H + 2, W + 2] int32, component of each pixel from 1; 0 is outside, as the whole border is.
    """
    nw, ne, sw, se = labels[:-1, :-1], labels[:-1, 1:], labels[1:, :-1], labels[1:, 1:]
    inside = [quarter > 0 for quarter in (nw, ne, sw, se)]
    # Rings turn where one or three of the four pixels around a point are inside, or two opposite ones. At the
    # latter two rings meet, or one ring comes twice: such points are listed twice.
    odd = inside[0] ^ inside[1] ^ inside[2] ^ inside[3]
    falling = inside[0] & inside[3] & ~inside[1] & ~inside[2]
    rising = inside[1] & inside[2] & ~inside[0] & ~inside[3]
    y, x = np.nonzero(odd | falling | rising)
    twice = (falling | rising)[y, x]
    point = np.repeat(np.arange(len(y)), 1 + twice)
    second = np.append(False, point[1:] == point[:-1])
    y, x = y[point], x[point]

    # A point listed twice: the first has the edge to the left, the second that to the right. Edges that belong to
    # one pixel are joined, unless both pixels are of one component: then edges across join, and the ring closes.
    one = np.where(falling[y, x], nw[y, x] == se[y, x], ne[y, x] == sw[y, x])
    first_goes_up = falling[y, x] ^ one
    has_lower = np.where(second, first_goes_up, ~first_goes_up) & twice[point]

    following = np.empty(len(y), np.int64)
    component = np.empty(len(y), labels.dtype)

    def link(one: np.ndarray, other: np.ndarray, ahead: np.ndarray, back: np.ndarray) -> None:
        """Direct edges from `one` to `other` where the pixel `ahead` is inside, else backwards: it lies right."""
        start, end = np.where(ahead > 0, [one, other], [other, one])
        following[start] = end
        component[start] = np.maximum(ahead, back)

    left, right = np.arange(0, len(y), 2), np.arange(1, len(y), 2)  # sorted by row: pairs are horizontal edges
    link(left, right, se[y[left], x[left]], ne[y[left], x[left]])
    columns = np.lexsort((has_lower, y, x))
    upper, lower = columns[::2], columns[1::2]
    link(upper, lower, sw[y[upper], x[upper]], se[y[upper], x[upper]])
    return _cycles(following.tolist(), component, np.stack([x, y], 1))


def _cycles(following: list[int], component: np.ndarray, corners: np.ndarray) -> list[tuple[int, Ring]]:
    """Return component and corners of each cycle of a permutation."""
    rings, seen = [], bytearray(len(following))
    for start in range(len(following)):
        if seen[start]:
            continue
        cycle, node = [], start
        while not seen[node]:
            seen[node] = True
            cycle.append(node)
            node = following[node]
        rings.append((int(component[start]), corners[cycle]))
    return rings
