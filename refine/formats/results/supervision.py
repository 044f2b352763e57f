"""Conversion of results to Roboflow's supervision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refine.errors import missing_extra
from refine.formats.results.saver import ImageResult

if TYPE_CHECKING:
    from supervision import Detections

    from refine.structures import PanopticResult


def to_supervision(result: PanopticResult) -> Detections:
    """Convert the things of a result; see `PanopticResult.to_supervision`."""
    try:
        from supervision import Detections
    except ImportError as error:
        raise missing_extra("to_supervision needs supervision", "supervision") from error
    item = ImageResult(result, "")
    things = item.things
    boxes = np.array([segment.bbox for segment in things], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    ids = np.array([segment.id for segment in things], item.ids.dtype)
    scores = [segment.score for segment in things]
    return Detections(
        xyxy=boxes,
        mask=item.ids == ids[:, None, None],
        confidence=None if None in scores else np.array(scores, np.float32),
        class_id=np.array([result.categories.index(segment.category_id) for segment in things], int),
        data={"class_name": np.array([result.name(segment) for segment in things], str), "segment_id": ids},
    )
