"""COCO panoptic results on disk: id-PNGs and one JSON, as panopticapi and test servers read them."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from refine.errors import RefineError
from refine.files import write_bytes, write_json
from refine.formats.runs import Runs

if TYPE_CHECKING:
    from refine.structures import Categories, PanopticResult


def write_png(path: str | Path, segment_ids: np.ndarray) -> None:
    """Write segment ids [H, W] as an id-PNG, atomically.

    Raises:
        ValueError: not a map of integers in 0..2^24-1.
        RefineError: the folder cannot be written.
    """
    if segment_ids.ndim != 2 or segment_ids.dtype.kind not in "iu" or not segment_ids.size:
        raise ValueError(f"write_png: expected integers [H, W], got {segment_ids.dtype} {segment_ids.shape}")
    if segment_ids.min() < 0 or segment_ids.max() >= 2**24:
        raise ValueError(f"write_png: ids are {segment_ids.min()}..{segment_ids.max()}, expected 0..2^24-1")
    rgb0 = np.ascontiguousarray(segment_ids, "<u4").view(np.uint8).reshape(*segment_ids.shape, 4)
    # OpenCV's own setting (fast compression) writes a 640 x 480 map in 2 ms; the smallest takes ten times it.
    _, data = cv2.imencode(".png", cv2.cvtColor(rgb0, cv2.COLOR_RGBA2BGR))
    write_bytes(path, data.data)


class PredictionWriter:
    """Writes results one by one: `OUT/panoptic/NAME.png`, and `OUT/panoptic.json` when closed.

        with PredictionWriter("out", categories) as writer:
            writer.add(image_id, "street.jpg", result)

    The JSON is not written if the block ends with an error, and one that was there is gone with the first result.

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
        self._ids: set[int | str] = set()

    def add(self, image_id: int | str, file_name: str, result: PanopticResult) -> Path:
        """Write one result; returns the PNG's path.

        Raises:
            RefineError: a picture of the same id, or the same name but for the suffix, was written before.
            ValueError: the map contradicts the segments.
        """
        name = Path(file_name).with_suffix(".png").name
        if name in self._names:
            raise RefineError(f"{file_name}: two pictures would be written as {name}; rename one")
        if image_id in self._ids:
            raise RefineError(f"{file_name}: image id {image_id} was written before; give each picture its own")
        segment_ids = result.segment_ids.cpu().numpy()
        _check_areas(result, segment_ids)
        height, width = segment_ids.shape
        path = self.out / "panoptic" / name
        write_png(path, segment_ids)
        if not self._names:  # of earlier results, which these may replace in part
            (self.out / "panoptic.json").unlink(missing_ok=True)
        self._names.add(name)
        self._ids.add(image_id)
        self._images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
        self._annotations.append(result.to_coco(image_id, name))
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


def _check_areas(result: PanopticResult, segment_ids: np.ndarray) -> None:
    """Hold what the JSON will say against what the PNG will show."""
    ids, pixels = Runs.from_map(segment_ids).areas()
    shown = {i: n for i, n in zip(ids.tolist(), pixels.tolist(), strict=True) if i}
    stated = {segment.id: segment.area for segment in result.segments}
    if shown != stated:
        wrong = min(i for i in shown | stated if shown.get(i) != stated.get(i))
        raise ValueError(
            f"PanopticResult: segment {wrong} shows {shown.get(wrong, 0)} pixels, its area is {stated.get(wrong)}"
        )
