"""Pictures of panoptic results."""

from __future__ import annotations

import colorsys
import io
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
from refine.structures import PanopticResult, Segment

MAX_LABELS = 40
"""Pictures of more things get contours and colours, but no names, which nobody could read."""

JPEG_SIDE = 65_500
"""Longest side in pixels that the JPEG encoder takes."""

Box = tuple[float, float, float, float]
GREEN, RED, YELLOW = (40, 200, 80), (230, 50, 50), (250, 200, 30)


def overlay(image: Tensor, result: PanopticResult, *, labels: bool = True, alpha: float = 0.5) -> Tensor:
    """Lay colours, contours and names over a picture.

    Stuff has its category's colour; things have variations of it, so that neighbours differ. Void stays as
    it is, darkened.

    Args:
        image: Tensor[3, H, W] uint8 RGB.
        result: of the same size.
        labels: write names.
        alpha: opacity of the colours, 0-1.

    Returns:
        Tensor[3, H, W] uint8 RGB.

    Raises:
        ValueError: sizes differ.
    """
    if tuple(image.shape[1:]) != tuple(result.segment_ids.shape):
        raise ValueError(f"overlay: image {tuple(image.shape[1:])}, result {tuple(result.segment_ids.shape)}")
    picture = image.permute(1, 2, 0).cpu().numpy().astype(np.float32)
    rank, colors = _ranks(result), segment_colors(result)
    table = np.concatenate([[(0, 0, 0)], colors]).astype(np.float32)  # row 0 is void
    # Stuff lies thinner than things, so that things stand out.
    opacity = [0.35, *(alpha if s.isthing else alpha * 0.8 for s in result.segments)]
    weight = np.array(opacity, np.float32)[rank][..., None]
    painted = picture * (1 - weight) + table[rank] * weight
    line = contours(rank, _line_width(image.shape[1:]))[..., None]
    edge = np.where(table[rank].mean(-1, keepdims=True) > 140, 30, 255)  # dark on light, light on dark
    painted = painted * (1 - 0.75 * line) + edge * 0.75 * line
    drawn = Image.fromarray(painted.clip(0, 255).astype(np.uint8))
    if labels and sum(s.isthing for s in result.segments) <= MAX_LABELS:
        _write_names(drawn, rank, result, colors)
    return _to_tensor(drawn)


def segment_colors(result: PanopticResult) -> np.ndarray:
    """A colour per segment, in their order: [S, 3] uint8 RGB; things of one class differ from each other."""
    seen: dict[int, int] = {}
    colors = np.zeros((len(result.segments), 3), np.uint8)
    for n, segment in enumerate(result.segments):
        index = result.categories.index(segment.category_id)
        color = result.categories[index].color
        count = seen[index] = seen.get(index, -1) + 1
        colors[n] = _vary(color, count) if segment.isthing and count else color
    return colors


def _vary(color: tuple[int, int, int], count: int) -> tuple[int, int, int]:
    """The count-th variation of a colour: another hue, saturation and lightness, well spread."""
    hue, light, saturation = colorsys.rgb_to_hls(*(c / 255 for c in color))
    hue = (hue + 0.38 * ((count * 0.618034) % 1 - 0.5)) % 1
    light = min(max(light + 0.35 * ((count * 0.754878) % 1 - 0.5), 0.3), 0.78)
    saturation = min(max(saturation, 0.55) + 0.3 * ((count * 0.569840) % 1), 1)
    r, g, b = colorsys.hls_to_rgb(hue, light, saturation)
    return round(255 * r), round(255 * g), round(255 * b)


def difference(image: Tensor, truth: PanopticResult, result: PanopticResult) -> Tensor:
    """What went wrong: things and regions that match the truth in green, made-up ones in red, missed ones
    in yellow.

    Args:
        image: Tensor[3, H, W] uint8 RGB.
        truth, result: of the same size and categories.

    Returns:
        Tensor[3, H, W] uint8 RGB.
    """
    picture = image.permute(1, 2, 0).cpu().numpy().astype(np.float32) * 0.6
    of_truth, of_result = _ranks(truth), _ranks(result)
    width = len(result.segments) + 1
    overlap = np.bincount((of_truth * width + of_result).ravel(), minlength=(len(truth.segments) + 1) * width)
    overlap = overlap.reshape(-1, width)
    union = overlap.sum(1)[1:, None] + (overlap.sum(0) - overlap[0])[None, 1:] - overlap[1:, 1:]
    same = np.array(
        [[t.category_id == r.category_id for r in result.segments] for t in truth.segments], bool
    ).reshape(len(truth.segments), len(result.segments))
    match = same & (2 * overlap[1:, 1:] > union)
    found = np.concatenate([[False], match.any(0)])
    missed = np.concatenate([[False], ~match.any(1)])
    made_up = ~found
    made_up[0] = False
    thick = _line_width(image.shape[1:]) + 1
    for chosen, rank, color in (
        (found, of_result, GREEN),
        (missed, of_truth, YELLOW),
        (made_up, of_result, RED),
    ):
        inside = chosen[rank]
        picture[inside] = picture[inside] * 0.75 + np.array(color, np.float32) * 0.25
        line = contours(np.where(inside, rank, 0), thick)[..., None]
        picture = picture * (1 - line) + np.array(color, np.float32) * line
    return _to_tensor(Image.fromarray(picture.clip(0, 255).astype(np.uint8)))


def contact_sheet(
    pictures: Sequence[Tensor], titles: Sequence[str] | None = None, columns: int = 3, width: int = 480
) -> Tensor:
    """Pictures of any size in a grid, each `width` wide, with titles above them.

    Returns:
        Tensor[3, H, W] uint8 RGB on white.
    """
    font = ImageFont.load_default(size=18)
    gap, head = 12, 28 if titles else 0
    tiles = []
    for picture in pictures:
        tile = Image.fromarray(picture.permute(1, 2, 0).numpy())
        tiles.append(
            tile.resize((width, max(1, round(tile.height * width / tile.width))), Image.Resampling.LANCZOS)
        )
    rows = [tiles[n : n + columns] for n in range(0, len(tiles), columns)]
    heights = [max(tile.height for tile in row) + head + gap for row in rows]
    used = min(columns, len(tiles))
    sheet = Image.new("RGB", (used * (width + gap) + gap, sum(heights) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    top = gap
    for r, row in enumerate(rows):
        for c, tile in enumerate(row):
            left = gap + c * (width + gap)
            if titles:
                draw.text((left, top), titles[r * columns + c], fill="black", font=font)
            sheet.paste(tile, (left, top + head))
        top += heights[r]
    return _to_tensor(sheet)


def encode_image(image: Tensor, kind: Literal["JPEG", "PNG"], comment: str = "") -> bytes:
    """Return the file content of an image.

    Args:
        image: Tensor[3, H, W] uint8 RGB.
        kind: format of the file.
        comment: text to keep in the file's metadata.

    Raises:
        RefineError: too large for JPEG.
    """
    if kind == "JPEG" and max(image.shape[1:]) > JPEG_SIDE:
        height, width = image.shape[1:]
        raise RefineError(
            f"{width} × {height} pixels do not fit into a JPEG, which has at most {JPEG_SIDE} on a side; "
            "leave the overlay out (--no-overlays)"
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


def write_picture(path: str | Path, picture: Tensor, comment: str = "") -> None:
    """Write Tensor[3, H, W] uint8 RGB as JPEG (`.jpg`, `.jpeg`) or PNG, atomically; see `encode_image`."""
    kind: Literal["JPEG", "PNG"] = "JPEG" if Path(path).suffix.lower() in (".jpg", ".jpeg") else "PNG"
    write_bytes(path, encode_image(picture, kind, comment))


def _ranks(result: PanopticResult) -> np.ndarray:
    """[H, W] int64: 0 = void, n + 1 = n-th segment."""
    ids = result.segment_ids.cpu().numpy()
    table = np.zeros(max([int(ids.max(initial=0)), *(s.id for s in result.segments)]) + 1, np.int64)
    for n, segment in enumerate(result.segments, 1):
        table[segment.id] = n
    return table[ids]


def _line_width(size: Sequence[int]) -> int:
    return max(1, round(min(size) / 350))


def contours(rank: np.ndarray, width: int) -> np.ndarray:
    """Smooth lines, `width` pixels wide, between what differs in [H, W]: [H, W] float32, 0-1."""
    edge: np.ndarray = np.zeros(rank.shape, np.uint8)
    edge[:, 1:] |= rank[:, 1:] != rank[:, :-1]
    edge[1:] |= rank[1:] != rank[:-1]
    if width > 1:
        edge = cv2.dilate(edge, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width)))
    return np.minimum(cv2.GaussianBlur(edge.astype(np.float32), (0, 0), 0.55) * 1.3, 1)


def _write_names(drawn: Image.Image, rank: np.ndarray, result: PanopticResult, colors: np.ndarray) -> None:
    """Names inside their segments, the large ones first; a name that would cover another is left out."""
    size = max(11, round(min(drawn.size) / 36))
    font = ImageFont.load_default(size=size)
    draw = ImageDraw.Draw(drawn, "RGBA")
    taken: list[Box] = []
    for n in sorted(range(len(result.segments)), key=lambda n: -result.segments[n].area):
        segment = result.segments[n]
        if segment.area < (3 * size) ** 2 / 2:
            continue
        text = _name(result, segment)
        x, y, width, height = segment.bbox
        column, row = innermost(rank[y : y + height, x : x + width] == n + 1)
        write_label(draw, [(x + column, y + row)], text, font, colors[n], taken)


def write_label(
    draw: ImageDraw.ImageDraw,
    places: Sequence[tuple[float, float]],
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    color: Sequence[int] | np.ndarray,
    taken: list[Box],
) -> None:
    """Write a line of text on a plate, in the middle of the first of `places` where the plate covers none of
    `taken`, to which it is added; nowhere if there is no such place.

    Args:
        draw: in mode RGBA; plates are pushed into the picture.
        places: (x, y) each.
        text, font: what is written.
        color: RGB of the plate, 0-255; the text is black or white.
        taken: (left, top, right, bottom) each.
    """
    width, height = draw.im.size
    for x, y in places:
        left, top, right, bottom = draw.textbbox((x, y), text, font=font, anchor="mm")
        dx = max(4 - left, 0) - max(right + 4 - width, 0)
        dy = max(3 - top, 0) - max(bottom + 3 - height, 0)
        box = (left + dx - 4, top + dy - 3, right + dx + 4, bottom + dy + 3)
        if any(box[0] < t[2] and t[0] < box[2] and box[1] < t[3] and t[1] < box[3] for t in taken):
            continue
        taken.append(box)
        draw.rounded_rectangle(box, radius=(bottom - top) / 3, fill=(*(int(c) for c in color), 215))
        draw.text((x + dx, y + dy), text, font=font, anchor="mm", fill=readable_on(color))
        return


def readable_on(color: Sequence[int] | np.ndarray) -> str:
    """White or black, whichever can be read on a colour, RGB 0-255."""
    r, g, b = color
    return "white" if 0.299 * r + 0.587 * g + 0.114 * b < 150 else "black"


def _name(result: PanopticResult, segment: Segment) -> str:
    name = result.name(segment)
    return f"{name} {segment.score:.2f}" if segment.isthing and segment.score is not None else name


def innermost(mask: np.ndarray) -> tuple[float, float]:
    """The point of a mask, [H, W] bool, that is farthest from its border, (x, y)."""
    distance = cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, 3)
    row, column = np.unravel_index(int(distance.argmax()), distance.shape)
    return float(column) - 0.5, float(row) - 0.5


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
