"""Argmax and softmax of logits upsampled ×4, computed without the upsampled logits.

A cell is the block of 4×4 pixels between four neighbouring logits, interpolated from them with weights
(1, 3, 5, 7)/8 and (7, 5, 3, 1)/8 along each axis.

- Label: weights are positive and sum to one, so a class that is best at all four corners is best in the
  whole cell. In other cells a class can win only if its maximum over the corners reaches every other class's
  minimum; only these candidates are interpolated.
- Confidence: the exponential of a weighted mean is a product of powers, exp(7/8·a + 1/8·b) = u⁷·v with
  u = exp(a/8), v = exp(b/8). The softmax denominator thus needs one exponential per logit instead of per
  pixel; the rest are products.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

ROWS = 8
"""Rows of cells whose denominators are computed at a time (about 10 MB for 133 classes, 334 columns)."""

CELLS = 4096
"""Number of cells whose candidates are compared at a time."""

TINY = 1e-30
"""Denominators below this may have underflowed: every class is about 70 below the best of some corner."""


def labels_and_confidence_x4(logits: Tensor, image_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Compute `semantic_map` on the CPU for stride 4 and an output of `image_size`.

    Args:
        logits: Tensor[L, h, w] float32, on the CPU.
        image_size: (height, width) in pixels, at most 4h × 4w.

    Returns:
        labels: Tensor[image_size] int64, 0..L-1.
        confidence: Tensor[image_size] float32, within 1e-5 of the softmax of interpolated logits.
    """
    (height, width), (_, h, w) = image_size, logits.shape
    # Cells extend two pixels beyond the image; logits that only affect pixels outside it are skipped.
    h, w = min(h, (height + 1) // 4 + 2), min(w, (width + 1) // 4 + 2)
    logits = logits[:, :h, :w]
    best, winner = _best(logits)
    # Corners of the cells: logits with their border replicated.
    rows, columns = np.arange(-1, h + 1).clip(0, h - 1), np.arange(-1, w + 1).clip(0, w - 1)
    corners = winner[rows][:, columns]
    cell_labels = corners[:-1, :-1]
    uniform = (cell_labels == corners[1:, :-1]) & (cell_labels == corners[:-1, 1:])
    uniform &= cell_labels == corners[1:, 1:]

    labels = np.empty((h + 1, 4, w + 1, 4), np.int64)
    labels[:] = cell_labels[:, None, :, None]
    # Relative to the best class of each corner: in a uniform cell the winner is 0 everywhere.
    denominator = np.empty((h + 1, 4, w + 1, 4), np.float32)
    _denominators(logits, best, denominator)
    confidence = 1 / denominator.clip(min=TINY)
    above, left = (border[:-1] for border in (rows, columns))
    below, right = (border[1:] for border in (rows, columns))
    relative = logits - best
    mixed = np.nonzero(~uniform)
    for n in range(0, len(mixed[0]), CELLS):
        y, x = mixed[0][n : n + CELLS], mixed[1][n : n + CELLS]
        corner_indices = [(r[y], c[x]) for r in (above, below) for c in (left, right)]
        corner_logits = np.stack([relative[:, r, c] for r, c in corner_indices])
        label, value = _compare(corner_logits)
        labels[y, :, x] = label.reshape(-1, 4, 4)
        confidence[y, :, x] *= np.exp(value).reshape(-1, 4, 4)
        steep = denominator[y, :, x].min((1, 2)) <= TINY
        if steep.any():
            confidence[y[steep], :, x[steep]] = _softmax(corner_logits[:, :, steep], value[steep]).reshape(-1, 4, 4)
    crop = (slice(2, 2 + height), slice(2, 2 + width))
    full = (4 * (h + 1), 4 * (w + 1))
    return (
        torch.from_numpy(np.ascontiguousarray(labels.reshape(full)[crop])),
        torch.from_numpy(np.ascontiguousarray(confidence.reshape(full)[crop].clip(max=1))),
    )


def _best(logits: Tensor) -> tuple[Tensor, np.ndarray]:
    """Return the largest logit, Tensor[h, w], and its class, int64[h, w], the lowest in case of a tie."""
    best = logits.amax(0)
    winner = np.zeros(best.shape, np.int64)
    for label in range(len(logits) - 1, -1, -1):  # faster than argmax over the first axis
        winner[(logits[label] == best).numpy()] = label
    return best, winner


def _denominators(logits: Tensor, best: Tensor, out: np.ndarray) -> None:
    """Compute softmax denominators relative to the best classes of the corners.

    Args:
        logits: Tensor[L, h, w] float32.
        best: Tensor[h, w] float32, largest logit of each position.
        out: float32[h+1, 4, w+1, 4], overwritten by the sum over classes of exp(interpolated (logits − best)).
    """
    classes, h, w = logits.shape
    result = torch.from_numpy(out)
    lines = torch.arange(-1, h + 1).clamp(0, h - 1)
    corner = torch.empty(4, classes, ROWS + 1, w + 2)  # powers 1, 3, 5, 7 of exp(logit / 64)
    edge = torch.empty(4, classes, ROWS, w + 2)  # of exp(logit / 8), interpolated along the column
    square, product = torch.empty_like(corner[0]), torch.empty(classes, ROWS, w + 1)
    for top in range(0, h + 1, ROWS):
        line = lines[top : top + ROWS + 1]
        count = len(line) - 1
        relative = torch.sub(logits[:, line], best[line]).div_(64)
        p, p2 = corner[:, :, : count + 1], square[:, : count + 1]
        q, q2, pixel = edge[:, :, :count], square[:, :count], product[:, :count]
        p[0, ..., 1:-1] = relative
        p[0, ..., 0], p[0, ..., -1] = relative[..., 0], relative[..., -1]
        _fill_odd_powers(p, p[0].exp_(), p2)
        for y in range(4):
            torch.mul(p[3 - y, :, :-1], p[y, :, 1:], out=q[0])
            _fill_odd_powers(q, q[0], q2)
            for x in range(4):
                torch.mul(q[3 - x, ..., :-1], q[x, ..., 1:], out=pixel)
                result[top : top + count, y, :, x] = pixel.sum(0)


def _fill_odd_powers(powers: Tensor, base: Tensor, square: Tensor) -> None:
    """Write base³, base⁵, base⁷ to powers[1:]; powers[0] is the base, `square` is scratch memory."""
    torch.mul(base, base, out=square)
    for n in range(3):
        torch.mul(powers[n], square, out=powers[n + 1])


# Weights of a cell's four corners (upper left, upper right, lower left, lower right) at its 16 pixels.
_FRACTION = np.array([1, 3, 5, 7], np.float32) / 8
_CORNER_WEIGHTS = np.stack(
    [np.outer(down, across).ravel() for down in (1 - _FRACTION, _FRACTION) for across in (1 - _FRACTION, _FRACTION)]
)


def _compare(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the best class at the 16 pixels of each cell.

    Args:
        corners: float32[4, L, n], logits at the corners of n cells.

    Returns:
        label: int64[n, 16], the lowest class in case of a tie.
        value: float32[n, 16], interpolated logit of that class.
    """
    candidate = corners.max(0) >= corners.min(0).max(0)  # L × n
    cell, label = np.nonzero(candidate.T)
    values = corners[:, label, cell].T @ _CORNER_WEIGHTS  # pairs of cell and class × 16
    first = np.searchsorted(cell, np.arange(corners.shape[2]))  # every cell has a candidate
    best = np.maximum.reduceat(values, first)  # n × 16
    winning = np.where(values == best[cell], label[:, None], np.iinfo(np.int64).max)
    return np.minimum.reduceat(winning, first), best


def _softmax(corners: np.ndarray, best: np.ndarray) -> np.ndarray:
    """Sum the softmax of each cell's 16 pixels term by term: float32[4, L, n], float32[n, 16] -> [n, 16]."""
    values = np.tensordot(corners, _CORNER_WEIGHTS, (0, 0))  # L × n × 16
    return 1 / np.exp(values - best).sum(0)
