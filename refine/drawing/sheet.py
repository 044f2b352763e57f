"""Contact sheets, and drawings of the differences between result and ground truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from refine.drawing.overlay import contours, line_width, segment_ranks
from refine.structures import PanopticResult

GREEN, RED, YELLOW = (40, 200, 80), (230, 50, 50), (250, 200, 30)


def contact_sheet(
    images: Sequence[Tensor], titles: Sequence[str] | None = None, columns: int = 3, width: int = 480
) -> Tensor:
    """Arrange images in a grid.

    Args:
        images: images of any sizes, each Tensor[3, H, W] uint8 RGB.
        titles: one line of text above each image, or None.
        columns: number of images per row.
        width: width in pixels to which each image is scaled.

    Returns:
        Tensor[3, H, W] uint8 RGB on white.
    """
    font = ImageFont.load_default(size=18)
    gap, head = 12, 28 if titles else 0
    tiles = []
    for image in images:
        tile = Image.fromarray(image.permute(1, 2, 0).numpy())
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
    return torch.from_numpy(np.array(sheet)).permute(2, 0, 1)


def difference(image: Tensor, truth: PanopticResult, result: PanopticResult) -> Tensor:
    """Draw true positives in green, false positives in red and false negatives in yellow.

    Args:
        image: Tensor[3, H, W] uint8 RGB.
        truth, result: ground truth and result, with the size of the image and the same categories.

    Returns:
        Tensor[3, H, W] uint8 RGB.
    """
    drawn = image.permute(1, 2, 0).cpu().numpy().astype(np.float32) * 0.6
    of_truth, of_result = segment_ranks(truth).astype(np.int64), segment_ranks(result)
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
    wrong = ~found
    wrong[0] = False
    thick = line_width(image.shape[1:]) + 1
    for selected, rank, color in (
        (found, of_result, GREEN),
        (missed, of_truth, YELLOW),
        (wrong, of_result, RED),
    ):
        inside = selected[rank]
        drawn[inside] = drawn[inside] * 0.75 + np.array(color, np.float32) * 0.25
        line = contours(np.where(inside, rank, 0), thick)[..., None]
        drawn = drawn * (1 - line) + np.array(color, np.float32) * line
    return torch.from_numpy(drawn.clip(0, 255).astype(np.uint8)).permute(2, 0, 1)
