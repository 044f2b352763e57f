"""COCO instances JSON: polygons and run lengths, of things and of stuff (https://cocodataset.org/#format-data)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from refine.data.convert.source import ReadOptions, Region, Regions, Sample, Source, SourceClass, existing
from refine.errors import RefineError, shown
from refine.files import read_json
from refine.formats.instances_json import InstanceFile
from refine.formats.panoptic_json import ImageEntry, image_entries
from refine.structures import Category


def recognise(path: Path) -> bool:
    return path.suffix.lower() == ".json" and _is_coco(read_json(path))


def read(path: Path, options: ReadOptions) -> Source:
    """Read a COCO instances JSON.

    Categories with `isthing` 0 are stuff. Images lie in `options.images`, else beside the file, or where COCO and
    its users have them: ../val2017 or ../images/val2017 for annotations/instances_val2017.json.

    Raises:
        RefineError: an entry is invalid, or the folder of images is not found.
    """
    content = read_json(path)
    if not _is_coco(content):
        raise RefineError(
            f"{path}: expected lists `images`, `annotations` and `categories`; give a COCO instances JSON"
        )
    if any(isinstance(each, dict) and "segments_info" in each for each in content["annotations"]):
        raise RefineError(f"{path}: is a COCO panoptic JSON, which needs no conversion; see refine check-data")

    def fault(kind: str, message: str) -> None:
        raise RefineError(f"{path}: {message}")

    images = image_entries(content["images"], fault)
    classes = [_class(entry, n, path) for n, entry in enumerate(content["categories"])]
    index: dict[int, int] = {}
    for n, each in enumerate(classes):
        if each.id in index:
            raise RefineError(f"{path}: categories[{n}]: id {each.id} is used twice; make ids unique")
        index[int(each.id or 0)] = n
    categories = [Category(number, classes[n].name, True) for number, n in index.items()]
    file = InstanceFile(path, images, categories, index, len(classes), content=content)
    folder = _images(path, next(iter(images.values())), options.images)
    samples = []
    for n, (image_id, entry) in enumerate(images.items()):
        name = str(entry.file_name)
        samples.append(Sample(name, folder / name, path, partial(_read, file, n, entry, classes), image_id))
    source = Source(classes, samples)
    if file.empty:
        source.skipped["annotation without a pixel"] = file.empty
    return source


def _read(file: InstanceFile, index: int, entry: ImageEntry, classes: list[SourceClass]) -> Regions:
    assert entry.size is not None
    return Regions(
        entry.size,
        [
            Region(classes[label].name, code, f"instance {k} of {entry.file_name}", crowd)
            for k, (label, crowd, code) in enumerate(file.codes(index))
        ],
    )


def _is_coco(content: Any) -> bool:
    lists = ("images", "annotations", "categories")
    return isinstance(content, dict) and all(isinstance(content.get(name), list) for name in lists)


def _class(entry: Any, n: int, path: Path) -> SourceClass:
    entry = entry if isinstance(entry, dict) else {}
    number, name, isthing = entry.get("id"), entry.get("name"), entry.get("isthing", 1)
    if type(number) is not int or not isinstance(name, str):
        raise RefineError(
            f"{path}: categories[{n}]: id and name are {shown(number)} and {shown(name)}; expected an integer and "
            f"a string"
        )
    if isthing not in (0, 1):
        raise RefineError(f"{path}: categories[{n}]: isthing is {shown(isthing)}; expected 1 or 0")
    return SourceClass(name, number, bool(isthing), (), str(entry.get("supercategory") or ""))


def _images(path: Path, first: ImageEntry, given: Path | None) -> Path:
    split = path.stem.rpartition("_")[2]
    here, above = path.parent, path.parent.parent
    usual = [here, here / "images", above / split, above / "images" / split, above / "images", here / split]
    name = str(first.file_name)
    return existing([given] if given else usual, name, str(path), "give their folder with --images")
