"""Read results with the software that they are for, which is too large for the tests, in an environment of its own.

    python tests/interop/read_back.py write FOLDER            # with refine installed
    uv venv L && uv pip install --python L labelme            # or datumaro, label-studio-sdk, fiftyone
    L/bin/python tests/interop/read_back.py labelme FOLDER    # or datumaro, labelstudio, fiftyone

Each command prints its package's version and the segments whose pixels it has read exactly, and fails if one is
not. FiftyOne needs pycocotools beside it. docs/results.md says what was read with which version.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

NAME = "a b.png"
"""Name of the image, with a space."""

Mask = tuple[str, np.ndarray]
"""Class and pixels, [H, W] bool."""


def write(folder: Path) -> None:
    """Write an image, a result with holes, parts and touching corners, and the files to read."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from helpers.results import HEIGHT, WIDTH, make_result
    from PIL import Image

    result = make_result()
    (folder / "images").mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "images" / NAME)
    np.save(folder / "ids.npy", result.segment_ids.numpy())
    names = {number: result.name(segment) for number, segment in ((s.id, s) for s in result.segments)}
    (folder / "names.json").write_text(json.dumps(names))
    result.save(folder, formats="fiftyone,labelme,cvat,labelstudio", image=pixels, file_name=NAME)


def labelme(folder: Path) -> Iterator[Mask]:
    from labelme._label_file import LabelFile

    shutil.copy(folder / "labelme" / Path(NAME).with_suffix(".json"), folder / "images")
    size = np.load(folder / "ids.npy").shape
    for shape in LabelFile(str(folder / "images" / Path(NAME).with_suffix(".json"))).shapes:
        (left, top), (right, bottom) = np.array(shape["points"]).astype(int)
        mask = np.zeros(size, bool)
        mask[top : bottom + 1, left : right + 1] = shape["mask"]
        yield shape["label"], mask


def datumaro(folder: Path) -> Iterator[Mask]:
    import datumaro as dm

    shutil.copytree(folder / "images", folder / "cvat" / "images", dirs_exist_ok=True)
    shutil.copy(folder / "cvat.xml", folder / "cvat" / "annotations.xml")
    dataset = dm.Dataset.import_from(str(folder / "cvat"), "cvat")
    classes = dataset.categories()[dm.AnnotationType.label]
    for item in dataset:
        for annotation in item.annotations:
            yield classes[annotation.label].name, np.asarray(annotation.image, bool)


def labelstudio(folder: Path) -> Iterator[Mask]:
    from label_studio_sdk.converter.brush import decode_rle

    (task,) = json.loads((folder / "labelstudio.json").read_text())
    for result in task["predictions"][0]["result"]:
        size = (result["original_height"], result["original_width"], 4)
        yield result["value"]["brushlabels"][0], decode_rle(result["value"]["rle"]).reshape(size)[..., 3] > 0


def fiftyone(folder: Path) -> Iterator[Mask]:
    """Read by FiftyOne's importer, which needs no database."""
    from fiftyone.utils.coco import COCODetectionDatasetImporter

    height, width = np.load(folder / "ids.npy").shape
    importer: Any = COCODetectionDatasetImporter(
        data_path=str(folder / "images"),
        labels_path=str(folder / "fiftyone.json"),
        label_types="segmentations",
    )
    with importer:
        for _, _, label in importer:
            found = label if hasattr(label, "detections") else next(iter(label.values()))
            for detection in found.detections:
                left, top = detection.bounding_box[0] * width, detection.bounding_box[1] * height
                mask = np.zeros((height, width), bool)  # `to_segmentation` rounds boxes down
                part = mask[round(top) :, round(left) :]
                part[: detection.mask.shape[0], : detection.mask.shape[1]] = detection.mask
                yield detection.label, mask


READERS = {
    "labelme": (labelme, "labelme", False),
    "datumaro": (datumaro, "datumaro", False),
    "labelstudio": (labelstudio, "label-studio-sdk", False),
    "fiftyone": (fiftyone, "fiftyone", True),
}
"""By name: function, package, and whether the file holds things alone."""


def main(name: str, folder: Path) -> None:
    if name == "write":
        write(folder)
        return
    read, package, things_only = READERS[name]
    ids, names = np.load(folder / "ids.npy"), json.loads((folder / "names.json").read_text())
    expected = {int(number) for number, label in names.items() if not (things_only and label == "ground")}
    exact = set()
    for label, mask in read(folder):
        exact |= {n for n in expected if names[str(n)] == label and np.array_equal(mask, ids == n)}
    print(f"{package} {importlib.metadata.version(package)}: {sorted(exact)} of {sorted(expected)} exact")
    assert exact == expected


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
