"""Overlays of panoptic results."""

from __future__ import annotations

import colorsys
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from refine.errors import RefineError
from refine.files import write_bytes
from refine.structures import Categories, PanopticResult, Segment
from refine.structures.categories import default_color

MAX_LABELS = 40
"""Maximum number of things for which names are drawn; more would be unreadable."""

JPEG_SIDE = 65_500
"""Maximum side in pixels that the JPEG encoder accepts."""

BAND = 64
"""Number of rows drawn at a time, so that they stay in the CPU cache."""

MAX_LETTERS = 30
"""Maximum length of a name; longer names are truncated."""

NAMED = {
    "person": (220, 20, 60),
    "animal": (255, 130, 0),
    "vehicle": (70, 70, 255),
    "furniture": (170, 60, 220),
    "food": (255, 205, 0),
    "kitchenware": (0, 205, 205),
    "appliance": (255, 60, 200),
    "object": (140, 230, 30),
    "sky": (120, 180, 240),
    "plants": (50, 130, 60),
    "ground": (160, 125, 85),
    "water": (20, 90, 170),
    "building": (125, 115, 130),
    "furnishing": (195, 165, 145),
}
"""Colours, RGB 0-255, for classes without a colour in the data set: bright for things, natural for stuff."""

Box = tuple[int, int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def overlay(image: Tensor, result: PanopticResult, *, labels: bool = True, alpha: float = 0.5) -> Tensor:
    """Draw a result over its image.

    Things have an outline and, on a plate, a name with a score; things of one class have different shades. Stuff
    has a lighter fill, no outline, and a name without a plate. Void is darkened. A name that would hide a large
    part of a thing is omitted.

    Memory: 2 bytes per pixel in addition to the arguments and the result.

    Args:
        image: Tensor[3, H, W] uint8 RGB.
        result: result with the size of the image.
        labels: whether to write names.
        alpha: opacity of the fill of things, 0-1.

    Returns:
        Tensor[3, H, W] uint8 RGB.

    Raises:
        ValueError: sizes differ.
    """
    if tuple(image.shape[1:]) != tuple(result.segment_ids.shape):
        raise ValueError(f"overlay: image {tuple(image.shape[1:])}, result {tuple(result.segment_ids.shape)}")
    pixels, rank = image.cpu().numpy(), segment_ranks(result)
    isthing = np.array([False, *(s.isthing for s in result.segments)])
    colors = np.concatenate([[(0, 0, 0)], segment_colors(result)]).astype(np.uint16)  # row 0 is void
    weight = np.round(256 * np.where(isthing, alpha, 0.8 * alpha)).astype(np.uint16)
    weight[0] = round(256 * 0.35)
    fill, keep = np.ascontiguousarray((colors * weight[:, None]).T), 256 - weight
    drawn = np.empty((*rank.shape, 3), np.uint8)
    width = line_width(rank.shape)
    for top in range(0, len(rank), BAND):
        rows = slice(top, top + BAND)
        part, canvas = rank[rows].astype(np.intp), drawn[rows]
        kept = keep.take(part)
        mixed = [(pixels[channel, rows] * kept + fill[channel].take(part)) >> 8 for channel in range(3)]
        cv2.merge([channel.astype(np.uint8) for channel in mixed], canvas)
        margin = max(top - width - 2, 0)
        around = rank[margin : top + BAND + width + 2]
        line = contours(around * isthing.take(around), width)[top - margin :][: len(part)]
        on_line = np.flatnonzero((line > 0) & isthing.take(part))
        strength = line.reshape(-1)[on_line, None]
        flat = canvas.reshape(-1, 3)
        flat[on_line] = flat[on_line] * (1 - strength) + colors[part.reshape(-1)[on_line]] * strength
    if labels and isthing.sum() <= MAX_LABELS:
        _write_names(drawn, rank, result, colors[1:].astype(np.uint8))
    return torch.from_numpy(drawn).permute(2, 0, 1)


def segment_colors(result: PanopticResult) -> np.ndarray:
    """Return a colour per segment, [S, 3] uint8 RGB; things of one class have different colours."""
    seen: dict[int, int] = {}
    classes = class_colors(result.categories)
    colors = np.zeros((len(result.segments), 3), np.uint8)
    for n, segment in enumerate(result.segments):
        index = result.categories.index(segment.category_id)
        count = seen[index] = seen.get(index, -1) + 1
        colors[n] = _vary(classes[index], count) if segment.isthing and count else classes[index]
    return colors


def class_colors(categories: Categories) -> list[tuple[int, int, int]]:
    """Return the colour of each class, RGB 0-255: the data set's, or one from `NAMED`."""
    made_up = {default_color(n) for n in range(len(categories))}
    made_up |= {default_color(category.id) for category in categories}
    return [NAMED.get(c.name, c.color) if c.color in made_up else c.color for c in categories]


def _vary(color: tuple[int, int, int], count: int) -> tuple[int, int, int]:
    """Return the count-th variation of a colour, with hue, saturation and lightness spread evenly."""
    hue, light, saturation = colorsys.rgb_to_hls(*(c / 255 for c in color))
    hue = (hue + 0.38 * ((count * 0.618034) % 1 - 0.5)) % 1
    light = min(max(light + 0.35 * ((count * 0.754878) % 1 - 0.5), 0.3), 0.78)
    saturation = min(max(saturation, 0.55) + 0.3 * ((count * 0.569840) % 1), 1)
    r, g, b = colorsys.hls_to_rgb(hue, light, saturation)
    return round(255 * r), round(255 * g), round(255 * b)


def fits_jpeg(image: Tensor) -> bool:
    """Return whether an image, Tensor[3, H, W], can be a JPEG."""
    return max(image.shape[1:]) <= JPEG_SIDE


def encode_image(image: Tensor, kind: Literal["JPEG", "PNG"], comment: str = "") -> bytes:
    """Encode an image as the content of a file.

    Args:
        image: Tensor[3, H, W] uint8 RGB.
        kind: file format.
        comment: text stored in the metadata of the file.

    Raises:
        RefineError: the image is too large for JPEG.
    """
    if kind == "JPEG" and not fits_jpeg(image):
        height, width = image.shape[1:]
        raise RefineError(
            f"{width} × {height} pixels do not fit into a JPEG, which has at most {JPEG_SIDE} on a side; "
            "leave overlay out of --save"
        )
    content = io.BytesIO()
    drawn = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
    if kind == "JPEG":
        drawn.save(content, "JPEG", quality=92, comment=comment)
    else:
        info = PngInfo()
        if comment:
            info.add_itxt("Comment", comment)
        drawn.save(content, "PNG", compress_level=4, pnginfo=info)  # as small as 6, in half the time
    return content.getvalue()


def write_image(path: str | Path, image: Tensor, comment: str = "") -> None:
    """Write Tensor[3, H, W] uint8 RGB atomically as JPEG (`.jpg`, `.jpeg`) or PNG; see `encode_image`."""
    kind: Literal["JPEG", "PNG"] = "JPEG" if Path(path).suffix.lower() in (".jpg", ".jpeg") else "PNG"
    write_bytes(path, encode_image(image, kind, comment))


def segment_ranks(result: PanopticResult) -> np.ndarray:
    """Return the position of each pixel's segment in the list, from 1, or 0 for void: [H, W] uint16 or int32."""
    ids = result.segment_ids.cpu().numpy()
    kind = np.uint16 if len(result.segments) < 1 << 16 else np.int32
    table = np.zeros(max([int(ids.max(initial=0)), *(s.id for s in result.segments)]) + 1, kind)
    for n, segment in enumerate(result.segments, 1):
        table[segment.id] = n
    return table[ids]


def line_width(size: Sequence[int]) -> int:
    """Return the width of contours in pixels for an image of `size` (height, width)."""
    return max(1, round(min(size) / 350))


def contours(rank: np.ndarray, width: int) -> np.ndarray:
    """Draw smooth lines, `width` pixels wide, between regions of different values: [H, W] → [H, W] float32, 0-1."""
    edge: np.ndarray = np.zeros(rank.shape, np.uint8)
    edge[:, 1:] |= rank[:, 1:] != rank[:, :-1]
    edge[1:] |= rank[1:] != rank[:-1]
    if width > 1:
        edge = cv2.dilate(edge, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width)))
    return np.minimum(cv2.GaussianBlur(edge.astype(np.float32), (0, 0), 0.55) * 1.3, 1)


def _write_names(drawn: np.ndarray, rank: np.ndarray, result: PanopticResult, colors: np.ndarray) -> None:
    """Write the names of segments into [H, W, 3] uint8, the largest segments first, where they hide little."""
    size = max(11, round(min(drawn.shape[:2]) / 36))
    font = ImageFont.load_default(size=size)
    things = np.array([False, *(s.isthing for s in result.segments)])
    areas = np.array([1, *(s.area for s in result.segments)])
    taken: list[Box] = []
    for n in sorted(range(len(result.segments)), key=lambda n: -result.segments[n].area):
        segment = result.segments[n]
        if segment.area < size**2:
            continue
        text = _name(result, segment)
        left, top, right, bottom = font.getbbox(text, anchor="mm")
        half = math.ceil((right - left) / 2) + 4, math.ceil((bottom - top) / 2) + 3
        for x, y in _positions(segment, rank, n + 1, half):
            box = _pushed_inside(x, y, half, drawn.shape)
            hidden = np.bincount(rank[box[1] : box[3], box[0] : box[2]].ravel(), minlength=len(areas))
            allowed = np.where(np.arange(len(areas)) == n + 1, 0.35, 0.1)
            if (things & (hidden > allowed * areas)).any() or any(_overlap(box, other) for other in taken):
                continue
            taken.append(box)
            _write_name(drawn, box, text, font, colors[n] if segment.isthing else None)
            break


def _positions(segment: Segment, rank: np.ndarray, number: int, half: tuple[int, int]) -> list[tuple[float, float]]:
    """Return positions (x, y) for a name's centre, the best first: in the segment, or above or below a thing."""
    x, y, width, height = segment.bbox
    column, row = innermost(rank[y : y + height, x : x + width] == number)
    inside = (x + column, y + row)
    beside = [(x + width / 2, y - half[1] - 2.0), (x + width / 2, y + height + half[1] + 2.0)]
    return [inside, *(beside if segment.isthing else [])]


def _pushed_inside(x: float, y: float, half: tuple[int, int], size: Sequence[int]) -> Box:
    left = round(min(max(x - half[0], 0), max(size[1] - 2 * half[0], 0)))
    top = round(min(max(y - half[1], 0), max(size[0] - 2 * half[1], 0)))
    return left, top, left + 2 * half[0], top + 2 * half[1]


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _write_name(drawn: np.ndarray, box: Box, text: str, font: Font, color: np.ndarray | None) -> None:
    """Write text into a box of [H, W, 3] uint8: on a coloured plate, or white with a rim if `color` is None."""
    part = drawn[box[1] : box[3], box[0] : box[2]]
    image = Image.fromarray(part)
    draw, middle = ImageDraw.Draw(image, "RGBA"), ((box[2] - box[0]) / 2, (box[3] - box[1]) / 2)
    if color is None:
        draw.text(middle, text, "white", font, anchor="mm", stroke_width=1, stroke_fill=(0, 0, 0, 200))
    else:
        size = (0, 0, box[2] - box[0] - 1, box[3] - box[1] - 1)
        draw.rounded_rectangle(size, size[3] / 4, fill=(*color.tolist(), 225))
        draw.text(middle, text, readable_on(color), font, anchor="mm")
    part[:] = np.asarray(image)


def readable_on(color: Sequence[int] | np.ndarray) -> str:
    """Return "white" or "black", whichever is readable on a colour, RGB 0-255."""
    r, g, b = (float(c) for c in color)
    return "white" if 0.299 * r + 0.587 * g + 0.114 * b < 150 else "black"


def _name(result: PanopticResult, segment: Segment) -> str:
    name = short_name(result.name(segment))
    return f"{name} {segment.score:.2f}" if segment.isthing and segment.score is not None else name


def short_name(name: str) -> str:
    """Return a name on one line, truncated to `MAX_LETTERS` characters."""
    name = " ".join(name[: 2 * MAX_LETTERS].split())
    return name if len(name) <= MAX_LETTERS else f"{name[: MAX_LETTERS - 1]}…"


def innermost(mask: np.ndarray) -> tuple[float, float]:
    """Return the point (x, y) of a mask, [H, W] bool, farthest from its border."""
    step = max(1, round(max(mask.shape) / 500))  # large masks are subsampled
    padded = cv2.copyMakeBorder(mask[::step, ::step].astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, 3)
    row, column = np.unravel_index(int(distance.argmax()), distance.shape)
    return step * (float(column) - 1) + 0.5, step * (float(row) - 1) + 0.5
