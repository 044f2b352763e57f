"""Prediction in tiles against prediction of the whole image, and the memory that a large image takes.

    python benchmarks/tiles.py compare --data data/nuclei --kind fluo_small --side 3 --scale 2 --tile 768
    python benchmarks/tiles.py slide --data data/nuclei --kind fluo_small --pixels 20000 --out runs/slide

`compare` joins the first `--side`² validation images of one kind and size into a mosaic, predicts it whole and in
tiles at the same scale, and prints the PQ of the tiles, with the whole as the ground truth. `slide` repeats such a
mosaic as a tiled TIFF, predicts it with `refine predict` in a process of its own, and prints its time and its peak
of memory.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import tifffile
import torch

from refine.evaluation.pq import PanopticQuality
from refine.experiments.machine import describe_machine, name_machine
from refine.files import read_json
from refine.formats.images import read_image
from refine.inference.image_job import NO_LIMIT
from refine.inference.predictor import Predictor
from refine.inference.tiling.plan import Tiling


def mosaic(data: Path, kind: str, side: int) -> torch.Tensor:
    """Join side × side validation images of one kind, all as large as the first: Tensor[3, H, W] uint8."""
    images = [i for i in read_json(data / "panoptic_val.json")["images"] if i["kind"] == kind]
    size = images[0]["height"], images[0]["width"]
    images = [i for i in images if (i["height"], i["width"]) == size]
    pixels = [read_image(data / "images" / "val" / i["file_name"]) for i in images]
    rows = [[pixels[(row * side + n) % len(pixels)] for n in range(side)] for row in range(side)]
    return torch.cat([torch.cat(row, 2) for row in rows], 1)


def compare(options: argparse.Namespace) -> None:
    image = mosaic(options.data, options.kind, options.side)
    predictor = Predictor(options.checkpoint)
    predictor.limit_detections(options.max_detections)
    test_size = predictor.test_size
    predictor.test_size = (round(min(image.shape[1:]) * options.scale), NO_LIMIT)
    whole = predictor(image)
    predictor.test_size, predictor.tiling = test_size, Tiling(options.tile, options.overlap, options.scale)
    tiled = predictor(image)
    quality = PanopticQuality(predictor.categories)
    quality.update(
        whole.segment_ids.numpy(),
        whole.segments,
        tiled.segment_ids.numpy(),
        tiled.segments,
        image_id=1,
        file_name="",
    )
    print(f"{options.kind}, {image.shape[2]} × {image.shape[1]}, scale {options.scale:g}, tile {options.tile}")
    report = quality.compute()
    for name, isthing in (("all classes", None), ("things", True), ("stuff", False)):
        values = report.group(isthing)
        print(f"  {name}: " + ", ".join(f"{key.upper()} {100 * values[key]:.2f}" for key in ("pq", "sq", "rq")))


def slide(options: argparse.Namespace) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    part = mosaic(options.data, options.kind, options.side).permute(1, 2, 0).numpy()
    repeats = (-(-options.pixels // part.shape[0]), -(-options.pixels // part.shape[1]), 1)
    path = options.out / "slide.tif"
    pixels = np.tile(part, repeats)[: options.pixels, : options.pixels]
    tifffile.imwrite(path, pixels, tile=(512, 512), photometric="rgb", compression="zlib", bigtiff=True)
    del pixels
    words = ["predict", path, "-o", options.out / "results", "--checkpoint", options.checkpoint, "--save", "coco"]
    words += ["--tile", options.tile, "--scale", options.scale, "--max-detections", options.max_detections]
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "refine.cli.main", *map(str, words)], check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"{options.pixels} × {options.pixels} px: {(time.monotonic() - began) / 60:.1f} min, {peak:.2f} GiB RSS")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["compare", "slide"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--kind", default="fluo_small")
    parser.add_argument("--checkpoint", default="nuclei")
    parser.add_argument("--side", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--overlap", type=int)
    parser.add_argument("--max-detections", type=int, default=1500)
    parser.add_argument("--pixels", type=int, default=20000)
    parser.add_argument("--out", type=Path, default=Path("runs/slide"))
    options = parser.parse_args()
    print(name_machine(describe_machine(torch.device("cpu"))))
    {"compare": compare, "slide": slide}[options.what](options)


if __name__ == "__main__":
    main()
