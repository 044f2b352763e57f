"""Table of the formats that can be converted. Readers are imported when they are used."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from refine.data.convert.source import ReadOptions, Source
from refine.errors import RefineError


@dataclass(frozen=True)
class Format:
    """Format of data sets.

    Attributes:
        module: module of `refine.data.convert` with `read` and `recognise`.
        source: what the user gives, for the help.
        options: fields of `ReadOptions` that the format uses.
    """

    module: str
    source: str
    options: tuple[str, ...] = ()


FORMATS = {
    "labels": Format(
        "label_images", "folder of images and label images (StarDist, Cellpose, …)", ("labels", "name", "page")
    ),
    "masks": Format("object_masks", "folder of ID/images and ID/masks (2018 Data Science Bowl)", ("name",)),
    "coco": Format("coco_instances", "COCO instances JSON", ("images",)),
    "yolo": Format("yolo", "data.yaml of YOLO segmentation, or its folder", ("images", "split")),
    "labelme": Format("labelme", "folder of LabelMe's JSON files"),
    "cvat": Format("cvat", "annotations.xml of CVAT for images 1.1, or its folder", ("images",)),
    "voc": Format("voc", "folder with SegmentationObject (Pascal VOC)", ("images", "split")),
    "cityscapes": Format("cityscapes", "folder with leftImg8bit and gtFine", ("split",)),
    "labelstudio": Format("label_studio", "JSON export of Label Studio", ("images",)),
    "datumaro": Format(
        "datumaro", "folder with annotations/*.json of Datumaro, or one of them", ("images", "split")
    ),
    "supervisely": Format("supervisely", "folder with meta.json of a Supervisely project", ("split",)),
    "mapillary": Format("mapillary", "folder of Mapillary Vistas with its config.json", ("split",)),
    "ade20k": Format("ade20k", "folder of ADE20K's images with their _seg.png and .json", ("split",)),
    "adechallenge": Format(
        "ade_challenge", "folder of ADEChallengeData2016 (scene parsing, 150 classes)", ("split",)
    ),
    "imagefolder": Format(
        "image_folder", "folder with metadata.jsonl of file_name, label_file_name and segments_info", ("split",)
    ),
    "huggingface": Format("hugging_face", "folder of parquet or arrow files with segments_info", ("split",)),
}


def read_source(name: str | None, path: Path, options: ReadOptions) -> tuple[str, Source]:
    """Read a data set in a format, or in the only one that recognises it; return the format and the data set.

    Raises:
        RefineError: no format or several recognise the path, an option does not belong to the format, or the data
            set is invalid or empty.
    """
    if name is None:
        name = recognise(path)
    default = ReadOptions()
    for option in ("images", "labels", "split", "name", "page"):
        if getattr(options, option) != getattr(default, option) and option not in FORMATS[name].options:
            flag = "class" if option == "name" else option
            takes = [each for each, entry in FORMATS.items() if option in entry.options]
            raise RefineError(f"--{flag}: format {name} does not take it; these do: {', '.join(takes)}")
    source: Source = _module(name).read(path, options)
    if not source.samples:
        raise RefineError(f"{path}: contains no annotated image; check the path")
    return name, source


def recognise(path: Path) -> str:
    """Return the format of a file or folder.

    Raises:
        RefineError: no format or several recognise it.
    """
    found = [name for name in FORMATS if _module(name).recognise(path)]
    if len(found) == 1:
        return found[0]
    if found:
        raise RefineError(f"{path}: could be {' or '.join(found)}; give the format: refine import FORMAT {path} …")
    raise RefineError(f"{path}: no format recognises it; give one of {', '.join(FORMATS)} before it")


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"refine.data.convert.{FORMATS[name].module}")
