"""The formats in which results are saved, by name: `predict --save` and `PanopticResult.save`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from refine import __version__
from refine.errors import RefineError, did_you_mean, missing_extra, shown
from refine.files import read_json, write_json
from refine.formats.image_list import SUFFIXES
from refine.formats.results import (
    coco_instances,
    cutouts,
    cvat,
    geojson,
    label_images,
    label_studio,
    labelme,
    objects,
)
from refine.formats.results.saver import ImageResult, Saver
from refine.formats.stream import read_sources
from refine.storage import Stamp, stamp

COCO = "coco"
"""Name of the format that is always written: id-PNGs and panoptic.json, which `--resume` reads."""


def _overlay(item: ImageResult) -> Iterator[bytes]:
    """Yield the drawing of a result over its image, a JPEG."""
    from refine.drawing.overlay import encode_image, overlay

    if item.image is None:
        raise ValueError("this format needs the image; pass image=…")
    comment = f"refine {__version__}, model {item.model}" if item.model else ""
    yield encode_image(overlay(item.image, item.result), "JPEG", comment)


SAVERS = {
    "overlay": Saver("drawings to look at", ("overlays/{name}.jpg",), _overlay),
    "labels": Saver(
        "TIFF for napari, ImageJ and CellProfiler",
        ("labels/{name}.tif", "classes/{name}.tif"),
        label_images.encode,
    ),
    "csv": Saver(
        "one table of all objects",
        ("parts/csv/{name}.json",),
        objects.encode,
        "objects.csv",
        objects.join,
        ("skimage", "measure"),
    ),
    "geojson": Saver("polygons for QuPath and GIS", ("geojson/{name}.geojson",), geojson.encode),
    "cutouts": Saver("one transparent PNG per object", ("cutouts/{name}/{id}.png",), cutouts.encode),
    "instances": Saver(
        "COCO results for pycocotools and test servers",
        ("parts/instances/{name}.json",),
        coco_instances.encode,
        "instances.json",
        coco_instances.join_results,
    ),
    "fiftyone": Saver(
        "COCO data set for FiftyOne",
        ("parts/instances/{name}.json",),
        coco_instances.encode,
        "fiftyone.json",
        coco_instances.join_dataset,
    ),
    "labelme": Saver("masks for LabelMe", ("labelme/{name}.json",), labelme.encode),
    "cvat": Saver("masks for CVAT", ("parts/cvat/{name}.json",), cvat.encode, "cvat.xml", cvat.join),
    "labelstudio": Saver(
        "predictions for Label Studio",
        ("parts/labelstudio/{name}.json",),
        label_studio.encode,
        "labelstudio.json",
        label_studio.join,
    ),
}


def find_savers(names: str | Sequence[str]) -> list[Saver]:
    """Return the savers of some formats, each once.

    Args:
        names: names of formats, or one string of names separated by commas; "coco" stands for none of these.

    Raises:
        RefineError: a format is unknown, or its package is not installed.
    """
    words = [word.strip() for word in names.split(",")] if isinstance(names, str) else names
    savers = []
    for word in dict.fromkeys(words):
        if word == COCO:
            continue
        if word not in SAVERS:
            known = [COCO, *SAVERS]
            hint = did_you_mean(word, known)
            raise RefineError(f"--save: unknown format {shown(word)}{hint}; choose from {', '.join(known)}")
        saver = SAVERS[word]
        if saver.needs and find_spec(saver.needs[0]) is None:
            raise missing_extra(f"--save {word} needs {saver.needs[0]}", saver.needs[1])
        savers.append(saver)
    return savers


def encode(savers: Iterable[Saver], item: ImageResult) -> Iterator[tuple[str, bytes]]:
    """Yield path below the folder of results and content of each file of an image."""
    written: set[tuple[str, ...]] = set()
    for saver in savers:
        if saver.patterns not in written:  # two formats may be made from the same parts
            written.add(saver.patterns)
            yield from saver.files(item)


def _check_same(out: Path, item: ImageResult, source: Stamp | None, is_named: bool) -> None:
    """Raise RefineError if OUT/panoptic.json lists other images than `item`'s, which would no longer be listed.

    Two images may have the same name. An earlier result of this name is of the same image if the caller named it,
    if the image file has the same stamp as then, or if the segments are equal.
    """
    path = out / "panoptic.json"
    if not path.is_file():
        return
    earlier = read_json(path)
    others = [image["file_name"] for image in earlier["images"] if image["file_name"] != item.file_name]
    if others:
        raise RefineError(
            f"{out}: its panoptic.json lists {others[0]}, and would list {item.file_name} alone; give each image "
            "its own folder, or predict them together by refine predict"
        )
    is_same_file = source is not None and read_sources(out).get(item.file_name) == source
    segments = [segment.to_json() for segment in item.result.segments]
    if not (is_named or is_same_file or all(a["segments_info"] == segments for a in earlier["annotations"])):
        raise RefineError(
            f"{path}: its {item.file_name} may be another image, and would be replaced; give each image its own "
            f"folder, or pass file_name={item.file_name!r} to replace it"
        )


def _check_own(png: Path) -> None:
    """Raise RefineError if a PNG or the JSON beside it exists, and is no result: it may be the image itself."""
    beside = png.with_suffix(".json")
    match read_json(beside) if beside.is_file() else {}:
        case {"annotations": [{"file_name": png.name}]}:
            return
    for path in (png, beside):
        if path.exists():
            raise RefineError(f"{path}: is not a result of refine, and would be replaced; choose another name")


def save_result(
    item: ImageResult,
    path: str | Path,
    formats: str | Sequence[str],
    image_id: int | str,
    file: Path | None,
    is_named: bool,
) -> Path:
    """Write one result; see `PanopticResult.save`.

    Args:
        item: the result.
        path: folder, or path of a PNG.
        formats: names of formats.
        image_id: id of the image in the JSON.
        file: path of the image; None if it is unknown.
        is_named: whether the caller gave the name of the image.
    """
    from refine.formats.id_png import write_png
    from refine.formats.results_folder import check_results_folder
    from refine.formats.writer import PredictionWriter

    path, savers, result = Path(path), find_savers(formats), item.result
    if path.suffix.lower() in SUFFIXES - {".png"} | {".json"} and not path.is_dir():
        raise ValueError(f"{path}: expected a folder, or the name of a PNG")
    if path.suffix.lower() != ".png":
        source = stamp(file) if file else None
        check_results_folder(path, (name for saver in savers for name in saver.names))
        _check_same(path, item, source, is_named)
        with PredictionWriter(path, result.categories, savers=savers) as writer:
            writer.add(image_id, item.file_name, result, encode(savers, item), source)
        return path / "panoptic.json"
    if savers:
        raise ValueError("PanopticResult.save: a PNG is the format coco alone; give a folder for the others")
    _check_own(path)
    height, width = item.ids.shape
    write_png(path, item.ids)
    content = {
        "images": [{"id": image_id, "file_name": item.file_name, "height": height, "width": width}],
        "annotations": [result.to_coco(image_id, path.name)],
        "categories": result.categories.to_json(),
    }
    write_json(path.with_suffix(".json"), content)
    return path.with_suffix(".json")
