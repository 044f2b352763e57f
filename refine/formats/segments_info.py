"""Validation of `segments_info` entries, shared by training, data checks and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from refine.errors import shown

ID, CLASS, CROWD, AREA = range(4)
"""Columns of a segment table."""

UNSTATED = -1
"""Area of a segment whose entry does not state one."""

ID_LIMIT = 2**24
"""Exclusive upper limit of segment ids, which are stored in three 8-bit channels."""

_INTS = {int, *(np.dtype(code).type for code in np.typecodes["AllInteger"])}
"""Types of integers; a bool is none, although Python derives it from int."""


def segment_rows(
    infos: Iterable[Any], classes: Mapping[int, int], on_error: Callable[[str], None], limit: int = ID_LIMIT
) -> list[tuple[int, int, int, int]]:
    """Validate the segments of one image.

    Args:
        infos: entries of `segments_info`: `id`, `category_id`, and optionally `iscrowd` and `area`.
        classes: category id -> contiguous class.
        on_error: called with the message of each invalid entry; if it returns, the segment is skipped, or an
            invalid `iscrowd` or `area` is treated as missing.
        limit: exclusive upper limit of ids.

    Returns:
        (ID, CLASS, CROWD, AREA) of each valid segment, in input order.
    """
    rows: list[tuple[int, int, int, int]] = []
    index: dict[int, int] = {}
    for k, info in enumerate(infos):
        entry: dict[str, Any] = info if isinstance(info, dict) else {}
        number: Any = entry.get("id")
        category: Any = entry.get("category_id")
        if type(number) not in _INTS or not 0 < number < limit:
            on_error(f"segments_info[{k}]: id is {shown(number)}; expected an integer from 1 to {limit - 1}")
            continue
        if number in index:
            on_error(
                f"segment {number}: segments_info[{index[number]}] and [{k}] both use this id; give one of them "
                f"another id"
            )
            continue
        index[number] = k
        if type(category) not in _INTS or category not in classes:
            on_error(f"segment {number}: unknown category_id {shown(category)}; correct it or add the category")
            continue
        crowd, area = entry.get("iscrowd", 0), entry.get("area")
        if crowd not in (0, 1):
            on_error(f"segment {number}: iscrowd is {shown(crowd)}; expected 0 or 1")
            crowd = 0
        if area is None:
            area = UNSTATED
        elif not (type(area) in _INTS or (isinstance(area, float) and area.is_integer())) or not 0 <= area < 2**62:
            on_error(f"segment {number}: area is {shown(area)}; expected a whole number of pixels")
            area = UNSTATED
        rows.append((number, classes[category], int(crowd), int(area)))
    return rows
