"""Run lengths of masks as lists of counts, which several formats store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hotcoco import mask


def run_counts(inside: np.ndarray) -> np.ndarray:
    """Return the lengths of the runs of a flat mask, outside and inside by turns, the first outside (perhaps 0).

    Args:
        inside: [N] bool.

    Returns:
        [R] int64 with the sum N.
    """
    edges = np.flatnonzero(np.diff(inside, prepend=False))
    return np.diff(edges, prepend=0, append=inside.size)


def counts_by_id(ids: np.ndarray) -> dict[int, np.ndarray]:
    """Return `run_counts` of the pixels of each id, in raster order, without visiting the map once per id.

    Args:
        ids: [H, W] integer.
    """
    flat = ids.reshape(-1)
    starts = np.flatnonzero(np.diff(flat, prepend=flat[0] - 1))
    ends, values = np.append(starts[1:], flat.size), flat[starts]
    order = np.argsort(values, kind="stable")
    unique, first = np.unique(values[order], return_index=True)
    counts = {}
    for value, runs in zip(unique.tolist(), np.split(order, first[1:]), strict=True):
        edges = np.stack([starts[runs], ends[runs]], 1).reshape(-1)
        if edges[-1] == flat.size:
            edges = edges[:-1]
        counts[value] = np.diff(edges, prepend=0, append=flat.size)
    return counts


def coco_codes(ids: np.ndarray, wanted: Sequence[int]) -> list[dict[str, Any]]:
    """Return the compressed run lengths of some ids: `size`, and `counts` as text for JSON.

    Args:
        ids: [H, W] integer.
        wanted: ids to encode; each occurs in the map.
    """
    counts, (height, width) = counts_by_id(np.ascontiguousarray(ids.T)), ids.shape
    codes = []
    for i in wanted:
        code = mask.fr_py_objects({"size": [height, width], "counts": counts[i].tolist()}, height, width)
        text = code["counts"]
        codes.append({"size": [height, width], "counts": text if isinstance(text, str) else text.decode()})
    return codes
