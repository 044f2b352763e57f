"""COCO panoptic results on disk: id-PNGs and one JSON, as panopticapi and test servers read them."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np

from refine.errors import RefineError
from refine.files import atomic_path, write_json
from refine.structures import Categories, PanopticResult, id_to_rgb


def write_png(path: str | Path, segment_ids: np.ndarray) -> None:
    """Write segment ids [H, W] (0..2^24-1) as an id-PNG, atomically."""
    bgr = np.ascontiguousarray(id_to_rgb(segment_ids)[..., ::-1])
    ok, data = cv2.imencode(".png", bgr)
    assert ok
    with atomic_path(path) as temporary:
        data.tofile(temporary)


def read_png(path: str | Path) -> np.ndarray:
    """Segment ids [H, W] int32 of an id-PNG.

    Raises:
        RefineError: missing, damaged, or not an 8-bit RGB PNG.
    """
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise RefineError(f"{path}: cannot be read ({error.strerror}); check the folder of PNGs") from error
    bgr = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    if bgr is None:
        raise RefineError(f"{path}: is damaged or no PNG; write it again")
    if bgr.ndim != 3 or bgr.shape[2] < 3 or bgr.dtype != np.uint8:
        raise RefineError(f"{path}: is not an RGB PNG of 8 bits; write id = R + 256 G + 65536 B")
    # One widening of four bytes is cheaper than three shifts: B, G, R, 0 is 0x00RRGGBB little-endian.
    bgra = np.zeros((*bgr.shape[:2], 4), np.uint8)
    bgra[..., 0], bgra[..., 1], bgra[..., 2] = bgr[..., 2], bgr[..., 1], bgr[..., 0]
    return bgra.view(np.int32)[..., 0]


class PredictionWriter:
    """Writes results one by one: `OUT/panoptic/NAME.png`, and `OUT/panoptic.json` when closed.

        with PredictionWriter("out", categories) as writer:
            writer.add(image_id, "street.jpg", result)

    The JSON is not written if the block ends with an error.

    Args:
        out: folder, made if absent.
        categories: of the results.
    """

    def __init__(self, out: str | Path, categories: Categories) -> None:
        self.out = Path(out)
        self.categories = categories
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._names: set[str] = set()

    def add(self, image_id: int | str, file_name: str, result: PanopticResult) -> Path:
        """Write one result; returns the PNG's path.

        Raises:
            RefineError: another picture of the same name was written before.
        """
        name = Path(file_name).with_suffix(".png").name
        if name in self._names:
            raise RefineError(f"{file_name}: two pictures would be written as {name}; rename one")
        self._names.add(name)
        height, width = result.segment_ids.shape
        path = self.out / "panoptic" / name
        write_png(path, result.segment_ids.cpu().numpy())
        self._images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
        self._annotations.append(
            {
                "image_id": image_id,
                "file_name": name,
                "segments_info": [segment.to_json() for segment in result.segments],
            }
        )
        return path

    def close(self) -> Path:
        """Write the JSON; returns its path."""
        path = self.out / "panoptic.json"
        write_json(
            path,
            {
                "images": self._images,
                "annotations": self._annotations,
                "categories": self.categories.to_json(),
            },
        )
        return path

    def __enter__(self) -> PredictionWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
