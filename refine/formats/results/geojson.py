"""GeoJSON (RFC 7946) with the properties that QuPath reads; coordinates are pixels from the top left corner."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from refine.formats.outlines import outlines
from refine.formats.results.saver import ImageResult

if TYPE_CHECKING:
    from refine.structures import Segment


def encode(item: ImageResult) -> Iterator[bytes]:
    """Yield a feature collection: things are detections, regions of stuff annotations, both with their class.

    Outlines run along pixel edges, so filling them gives the same pixels back. Objects of several parts are
    multipolygons; holes are kept.
    """
    features = [_feature(item, segment) for segment in item.result.segments]
    yield json.dumps({"type": "FeatureCollection", "features": features}, allow_nan=False).encode()


def _feature(item: ImageResult, segment: Segment) -> dict[str, Any]:
    corner = np.array(segment.bbox[:2])
    polygons = [[_closed((ring + corner).tolist()) for ring in rings] for rings in outlines(item.crop(segment))]
    single = len(polygons) == 1
    category = item.result.categories[item.result.categories.index(segment.category_id)]
    measurements: dict[str, float] = {"segment id": segment.id, "area px": segment.area}
    if segment.score is not None:
        measurements["score"] = segment.score
    return {
        "type": "Feature",
        "geometry": {
            "type": "Polygon" if single else "MultiPolygon",
            "coordinates": polygons[0] if single else polygons,
        },
        "properties": {
            "objectType": "detection" if segment.isthing else "annotation",
            "classification": {"name": category.name, "color": list(category.color)},
            "measurements": measurements,
        },
    }


def _closed(ring: list[list[int]]) -> list[list[int]]:
    return [*ring, ring[0]]
