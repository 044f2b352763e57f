"""refine predict"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from refine.cli.options import add_image_options, fusion_changes, image_options, refuse_overwriting
from refine.cli.pictures import add_arguments, finish, for_each


def run(arguments: Sequence[str], prog: str, description: str) -> None:
    parser = argparse.ArgumentParser(prog, description=description)
    add_arguments(parser, "folder for panoptic.json, panoptic/ and overlays/")
    parser.add_argument("--method", help="rule of fusion (default: the checkpoint's)")
    parser.add_argument("--no-overlays", action="store_true", help="write no pictures")
    add_image_options(parser)
    options = parser.parse_args(arguments)

    from refine.drawing.overlay import overlay, write_picture
    from refine.formats.images import list_images, read_image
    from refine.formats.writer import PredictionWriter
    from refine.inference.predictor import Predictor

    reading = image_options(options)
    files = list_images(options.source)
    refuse_overwriting("--out: its", (_overlay(options.out, path) for path in files), files)
    refuse_overwriting("--out: its", (Path(options.out) / "panoptic" / f"{path.stem}.png" for path in files), files)
    predictor = Predictor(
        options.checkpoint, device=options.device, method=options.method, fusion=fusion_changes(options)
    )
    numbers = {path: number for number, path in enumerate(files, 1)}
    with PredictionWriter(options.out, predictor.categories) as writer:

        def predict(path: Path) -> str:
            image = read_image(path, options=reading, tell=print)
            result = predictor(image)
            writer.add(numbers[path], path.name, result)
            if not options.no_overlays:
                write_picture(_overlay(options.out, path), overlay(image, result))
            return result.summary()

        failed = for_each(files, predict)
    finish(failed, files, options.out, "results")


def _overlay(out: str, path: Path) -> Path:
    return Path(out) / "overlays" / f"{path.stem}.jpg"
