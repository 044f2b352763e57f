"""Writing of one panoptic result as an id-PNG and a JSON."""

from __future__ import annotations

from pathlib import Path

from refine.files import write_json
from refine.formats.writer import PredictionWriter, write_png
from refine.structures import PanopticResult


def save_result(result: PanopticResult, path: str | Path, file_name: str, image_id: int | str) -> Path:
    """Write a result in COCO panoptic format; see `PanopticResult.save`.

    Raises:
        RefineError: the folder or the files cannot be written.
        ValueError: areas of map and segments differ.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        with PredictionWriter(path, result.categories) as writer:
            writer.add(image_id, file_name, result)
        return path / "panoptic.json"
    segment_ids = result.segment_ids.cpu().numpy()
    height, width = segment_ids.shape
    write_png(path, segment_ids)
    content = {
        "images": [{"id": image_id, "file_name": file_name, "height": height, "width": width}],
        "annotations": [result.to_coco(image_id, path.name)],
        "categories": result.categories.to_json(),
    }
    write_json(path.with_suffix(".json"), content)
    return path.with_suffix(".json")
