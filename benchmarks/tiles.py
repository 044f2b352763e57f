"""Prediction in tiles against prediction of the whole image, and the memory that a large image takes.

    python benchmarks/tiles.py compare --data data/nuclei --kind fluo_small --side 3 --scale 2 --tile 768
    python benchmarks/tiles.py slide --data data/nuclei --kind fluo_small --pixels 20000 --out runs/slide

`compare` joins validation images of one kind and size into mosaics of `--side`² images, predicts each whole and in
tiles at the same scale, and prints the PQ of the tiles with the whole as the ground truth, and, if data and model
have the same categories, the PQ of both against the ground truth with the interval of the difference over mosaics.
The number of proposals of a model is limited per image and rises with `--max-detections`, which must be large
enough for the whole mosaic: otherwise the tiles, each with as many, find more.

`slide` repeats such a mosaic as a tiled TIFF, predicts it with `refine predict` in a process of its own, and prints
its time and its peak of memory.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch

from refine.evaluation.interval import Counts, paired_interval
from refine.evaluation.pq import PanopticQuality
from refine.experiments.machine import describe_machine, name_machine
from refine.formats.id_png import read_png
from refine.formats.images import read_image
from refine.formats.panoptic_json import Annotation, PanopticJson
from refine.inference.predictor import Predictor
from refine.inference.tiling.plan import NO_LIMIT, Tiling
from refine.structures import Categories, PanopticResult


@dataclass(frozen=True)
class Mosaic:
    """Images of one data set side by side, with their ground truth as one panoptic map.

    Attributes:
        image: Tensor[3, H, W] uint8.
        ids: [H, W] int32, ids of the segments; 0 is void.
        segments: entries of `segments_info`; each class of stuff is one segment.
        categories: categories of the segments.
    """

    image: torch.Tensor
    ids: np.ndarray
    segments: list[dict[str, Any]]
    categories: Categories


def mosaics(data: Path, kind: str | None, side: int, size: tuple[int, int] | None) -> Iterator[Mosaic]:
    """Join validation images, side × side at a time and each once, in the order of the JSON.

    Args:
        data: folder of the data set, with images/val, panoptic_val and panoptic_val.json.
        kind: kind of the images to use; None uses all.
        side: images per side.
        size: (height, width) to which images that are at least as large are cut; None takes those of the most
            frequent size.
    """
    content = PanopticJson(data / "panoptic_val.json")
    kinds = {image["id"]: image.get("kind") for image in content.content["images"]}
    chosen = [a for a in content.annotations if kind is None or kinds[a.image_id] == kind]
    sizes = {a.image_id: content.images[a.image_id].size or (0, 0) for a in chosen}
    if size is None:
        ((size, _),) = Counter(sizes.values()).most_common(1)
        chosen = [a for a in chosen if sizes[a.image_id] == size]
    height, width = size
    chosen = [a for a in chosen if sizes[a.image_id][0] >= height and sizes[a.image_id][1] >= width]
    for n in range(0, len(chosen) - side * side + 1, side * side):
        yield _join(data, content, chosen[n : n + side * side], side, size)


def _join(
    data: Path, content: PanopticJson, annotations: Sequence[Annotation], side: int, size: tuple[int, int]
) -> Mosaic:
    height, width = size
    pixels, maps, segments, count = [], [], list[dict[str, Any]](), 0
    stuff: dict[int, int] = {}
    for annotation in annotations:
        name = content.images[annotation.image_id].file_name
        pixels.append(read_image(data / "images" / "val" / str(name))[:, :height, :width])
        ids = read_png(data / "panoptic_val" / annotation.file_name)[:height, :width]
        joined = np.zeros_like(ids)
        for number, info in content.infos(annotation).items():
            known = stuff.get(info["category_id"])
            if not (ids == number).any():
                continue
            if known is None:
                count += 1
                segments.append(
                    {"id": count, "category_id": info["category_id"], "iscrowd": info.get("iscrowd", 0)}
                )
                if not content.categories[content.categories.index(info["category_id"])].isthing:
                    stuff[info["category_id"]] = count
            joined[ids == number] = known or count
        maps.append(joined)
    rows = [slice(row * side, (row + 1) * side) for row in range(side)]
    image = torch.cat([torch.cat(pixels[row], 2) for row in rows], 1)
    return Mosaic(
        image, np.concatenate([np.concatenate(maps[row], 1) for row in rows]), segments, content.categories
    )


def compare(options: argparse.Namespace) -> None:
    predictor = Predictor(options.checkpoint)
    predictor.limit_detections(options.max_detections)
    names = ("whole", "tiles", "tiles against whole")
    qualities = {name: PanopticQuality(predictor.categories) for name in names}
    counts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    size = tuple(map(int, options.size.split("x")[::-1])) if options.size else None
    for number, mosaic in enumerate(mosaics(options.data, options.kind, options.side, size)):
        if number == options.mosaics:
            break
        whole, tiled = (
            (result.segment_ids.numpy(), result.segments) for result in _predict(predictor, mosaic.image, options)
        )
        pairs = {"tiles against whole": (whole, tiled)}
        if mosaic.categories == predictor.categories:
            truth = mosaic.ids, mosaic.segments
            pairs |= {"whole": (truth, whole), "tiles": (truth, tiled)}
        for name, (expected, result) in pairs.items():
            single = PanopticQuality(predictor.categories)
            single.update(*expected, *result, image_id=number)
            qualities[name].merge(single)
            counts[name].append(single.state())
        print(f"mosaic {number + 1}: {mosaic.image.shape[2]} × {mosaic.image.shape[1]}", flush=True)
    overlap = Tiling(options.tile, options.overlap).least_overlap
    print(f"scale {options.scale:g}, tile {options.tile}, overlap at least {overlap}")
    for name in (name for name in names if counts[name]):
        report = qualities[name].compute()
        groups = (("all", None), ("things", True), ("stuff", False))
        print(f"  {name}: PQ " + ", ".join(f"{key} {100 * report.group(kind)['pq']:.2f}" for key, kind in groups))
    if not counts["whole"]:
        return
    tiles, other = ([Counts.of(predictor.categories, counts[name])] for name in ("tiles", "whole"))
    for metric in ("PQ", "PQ_things", "PQ_stuff"):
        if interval := paired_interval(tiles, other, metric):
            print(f"  {metric}, tiles - whole: 95% interval {100 * interval[0]:+.2f} to {100 * interval[1]:+.2f}")


def _predict(
    predictor: Predictor, image: torch.Tensor, options: argparse.Namespace
) -> tuple[PanopticResult, PanopticResult]:
    """Predict an image whole and in tiles, at the same scale."""
    test_size = predictor.test_size
    predictor.test_size = (round(min(image.shape[1:]) * options.scale), NO_LIMIT)
    whole = predictor(image)
    predictor.test_size = test_size
    predictor.tiling = Tiling(options.tile, options.overlap, options.scale)
    tiled = predictor(image)
    predictor.tiling = None
    return whole, tiled


def slide(options: argparse.Namespace) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    part = next(mosaics(options.data, options.kind, options.side, None)).image.permute(1, 2, 0).numpy()
    repeats = (-(-options.pixels // part.shape[0]), -(-options.pixels // part.shape[1]), 1)
    path = options.out / "slide.tif"
    pixels = np.tile(part, repeats)[: options.pixels, : options.pixels]
    tifffile.imwrite(path, pixels, tile=(512, 512), photometric="rgb", compression="zlib", bigtiff=True)
    del pixels
    words = ["predict", path, "-o", options.out / "results", "--checkpoint", options.checkpoint, "--save", "coco"]
    words += ["--tile", options.tile, "--scale", options.scale, "--max-detections", options.max_detections]
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "refine", *map(str, words)], check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"{options.pixels} × {options.pixels} px: {(time.monotonic() - began) / 60:.1f} min, {peak:.2f} GiB RSS")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["compare", "slide"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--kind", help="kind of the images, if the data set has several")
    parser.add_argument("--size", help="WIDTHxHEIGHT of the images (default: the most frequent)")
    parser.add_argument("--checkpoint", default="nuclei")
    parser.add_argument("--side", type=int, default=3, help="images per side of a mosaic (3)")
    parser.add_argument("--mosaics", type=int, help="number of mosaics (default: all that the images give)")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--overlap", type=int)
    parser.add_argument("--max-detections", type=int, default=4000)
    parser.add_argument("--pixels", type=int, default=20000)
    parser.add_argument("--out", type=Path, default=Path("runs/slide"))
    options = parser.parse_args()
    print(name_machine(describe_machine(torch.device("cpu"))))
    {"compare": compare, "slide": slide}[options.what](options)


if __name__ == "__main__":
    main()
